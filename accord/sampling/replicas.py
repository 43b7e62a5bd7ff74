"""Several engines with the same weights that share the prompts, as one sampler."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from accord.progress import progress
from accord.sampling.protocol import Completion, Sampler, check_request
from accord.sampling.transfer import Receiver, hand_over, in_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Replica(Sampler, Receiver, Protocol):
    """One of them: `vllm_engine.VLLMSampler` or `vllm_server.VLLMServerSampler`."""

    max_sequence_tokens: int

    @property
    def name(self) -> str:
        """To tell it from its like."""
        ...

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, temperature: float,
        update: Callable[[float], None],
    ) -> list[Completion]:  # fmt: skip
        """As `sample`, where somebody else has checked the request and shows how far it is."""
        ...


class Replicas:
    """A `Sampler` of several. Prompts go round by their index, so who answers which does not depend on time."""

    def __init__(self, starts: Sequence[Callable[[], Replica]], weights_folder: Path | None = None) -> None:
        """Start them all at the same time.

        Args:
            starts: each returns one.
            weights_folder: where new weights are handed over; None: wherever this machine likes.

        Raises:
            AccordError: one does not start; the others are ended then.
        """
        self.sync_count = 0
        self.weights_folder = weights_folder
        started: list[Replica] = []

        def begin(start: Callable[[], Replica]) -> Replica:
            started.append(start())
            return started[-1]

        try:
            self.replicas = in_all([lambda start=start: begin(start) for start in starts])  # type: ignore[misc]
        except BaseException:
            for replica in started:
                replica.close()
            raise

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt; see `Sampler.sample`."""
        longest = min(replica.max_sequence_tokens for replica in self.replicas)
        check_request(prompts, seeds, max_response_tokens, longest)
        count = len(self.replicas)
        done = [0.0] * count
        with progress("sampling answers", len(prompts)) as update:

            def work_of(number: int) -> Callable[[], list[Completion]]:
                def update_all(answers: float) -> None:
                    done[number] = answers
                    update(sum(done))

                mine, their_seeds = prompts[number::count], seeds[number::count]
                replica = self.replicas[number]
                return lambda: replica.answer(mine, their_seeds, max_response_tokens, temperature, update_all)

            at_work = min(count, len(prompts))
            shares = in_all([work_of(number) for number in range(at_work)]) if prompts else []
        return [shares[index % count][index // count] for index in range(len(prompts))]

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights, all at the same time; see `Sampler.sync`."""
        self.sync_count += 1
        hand_over(policy, self.replicas, self.weights_folder)

    def rest(self) -> None:
        """Leave GPUs that are the trainer's, too, to it."""
        for replica in self.replicas:
            replica.rest()

    def close(self) -> None:
        """End all of them."""
        in_all([replica.close for replica in self.replicas])


def parts(sampler: Sampler) -> list[tuple[str, Sampler]]:
    """The engines of a sampler with what to call them; prompt i is answered by engine i modulo their number."""
    if not isinstance(sampler, Replicas):
        return [("the sampler", sampler)]
    count = len(sampler.replicas)
    return [
        (f"replica {number} of {count} of the sampler ({replica.name})", replica)
        for number, replica in enumerate(sampler.replicas, start=1)
    ]
