"""`accord review`: what people sign of a verdict, before a model is promoted."""

import json

import click

from accord.cli.shared import AS_JSON, RUN, runs_of_command
from accord.errors import UsageError
from accord.terminal import say


@click.command(short_help="Approve or block a verdict with your own key.")
@RUN
@click.option("--sign", "comment", metavar="COMMENT", help="What you looked at, and what you found.")
@click.option("--approve", "decision", flag_value="approve", help="The candidate may be promoted.")
@click.option("--block", "decision", flag_value="block", help="It must not; only your key can lift that.")
@AS_JSON
def review(run: str, comment: str | None, decision: str | None, as_json: bool) -> None:
    """Sign what you say of an evaluation's verdict with your own key, or, without --sign, see what was signed.

    `accord promote` asks for as many approvals, by trusted keys other than the one that signed the verdict, as
    eval.gate.approvals says; a block by any trusted key stops it. (People compare single answers with `accord feedback
    review`.)
    """
    from eval.verdict.gate import SIGNATURE, read_verdict
    from eval.verdict.sign_offs import add_sign_off, read_sign_offs
    from eval.verdict.signing import read_signature

    found = runs_of_command().load(run)
    read_verdict(found)
    signer = read_signature(found.path / SIGNATURE).fingerprint
    if comment is not None:
        added = add_sign_off(found, comment, decision or "comment")  # type: ignore[arg-type]
        if added.fingerprint == signer and decision == "approve":
            say("your key signed the verdict, too, so your approval does not count for a promotion", err=True)
    elif decision:
        raise UsageError(f"--{decision} needs a comment that others can read: --sign COMMENT")
    sign_offs = read_sign_offs(found)
    if as_json:
        rows = [
            each.statement.model_dump(mode="json")
            | {"signer": each.signer, "fingerprint": each.fingerprint, "trusted": each.is_trusted}
            for each in sign_offs
        ]
        say(json.dumps(rows, indent=2))
        return
    for each in sign_offs:
        trust = "" if each.is_trusted else "  (not trusted here, so it does not count)"
        said = each.statement
        say(f"{said.decision:<8} {said.at[:16]}  {each.who}{trust}\n         {said.comment}")
    if not sign_offs:
        say(f"nothing signed yet; `accord review {found.id} --sign COMMENT --approve` (or --block) does")
