"""What starts a round on a cluster: a batch script for Slurm, a task for SkyPilot.

Both run one and the same command on every machine. What a cluster asks for besides (partition, account, kind of GPU) is
for the user to add; what accord needs of it is in these texts.
"""

import shlex
import sys
from pathlib import Path

import yaml

from accord.compute.config import ComputeConfig

PORT = 29400
"""Of the first machine, where the machines meet."""
MINUTES_TO_WAIT = 60
"""After which a job comes back that left because annotators are at work."""

SLURM = """\
#!/bin/bash
#SBATCH --job-name=accord-{name}
#SBATCH --nodes={machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={devices}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=accord-{name}-%j.log
# Add what your cluster asks for: --partition, --account, --time, --mem.
#
# One task a node; each runs the same command, and the first one does the round. Preempted or out of time, the job goes
# back into the queue and continues there. While annotators are at work (exit code 75) it leaves the nodes to others,
# and a new job looks again after {minutes} minutes.
set -u
cd {folder}

again() {{
    echo "accord: the job is asked to leave; it goes back into the queue and continues from its last checkpoint"
    kill -TERM "$step" 2>/dev/null
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}}
trap again USR1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --ntasks-per-node=1 {command} \\
    compute.machines="$SLURM_JOB_NUM_NODES" compute.rendezvous="$first:{port}" &
step=$!
wait "$step"
code=$?
if [ "$code" -eq 75 ]; then
    echo "accord: annotators are at work; a new job looks again in {minutes} minutes"
    sbatch --begin=now+{minutes}minutes "$0"
    exit 0
fi
exit "$code"
"""

SKYPILOT_RUN = """\
first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
accord --runs {runs} round {command} \\
    compute.machines="$SKYPILOT_NUM_NODES" compute.rendezvous="$first:{port}"
code=$?
if [ "$code" -eq 75 ]; then
    echo "accord: annotators are at work; launch this job again when they are done"
    exit 0
fi
exit "$code"
"""


def slurm_script(compute: ComputeConfig, config: Path, overrides: tuple[str, ...], runs: Path) -> str:
    """A batch script for `sbatch` that runs a round; nodes and GPUs are those of the configuration.

    Args:
        compute: machines and devices.
        config: the round's configuration.
        overrides: `key=value` as on the command line.
        runs: the folder of runs, which all nodes must see.
    """
    words = [
        sys.executable, "-m", "accord", "--runs", str(runs.resolve()), "round", str(config.resolve()), *overrides
    ]  # fmt: skip
    return SLURM.format(
        name=_name(config), machines=compute.machines, devices=compute.devices, port=PORT,
        minutes=MINUTES_TO_WAIT, folder=shlex.quote(str(Path.cwd())), command=shlex.join(words),
    )  # fmt: skip


def skypilot_task(compute: ComputeConfig, config: Path, overrides: tuple[str, ...]) -> str:
    """A task for `sky jobs launch`, which finds other machines where these are taken away.

    Args:
        compute: machines and devices.
        config: the round's configuration, in the folder that is sent along.
        overrides: `key=value` as on the command line.
    """
    command = shlex.join([str(config), *overrides])
    task = {
        "name": f"accord-{_name(config)}",
        "workdir": ".",
        "num_nodes": compute.machines,
        "resources": {
            "accelerators": f"H100:{compute.devices}",
            "use_spot": True,
            "job_recovery": {"strategy": "FAILOVER", "max_restarts_on_errors": 0},
        },
        # A volume that all nodes mount, and that outlives them: runs and checkpoints are there.
        "volumes": {"/runs": "accord-runs"},
        "setup": "pip install 'accord[vllm]'\n",
        "run": SKYPILOT_RUN.format(runs="/runs", command=command, port=PORT),
    }
    return yaml.safe_dump(task, sort_keys=False, width=120, default_style=None)


def _name(config: Path) -> str:
    """Of letters that both take."""
    return (
        "".join(letter if letter.isalnum() else "-" for letter in config.stem.lower()).strip("-") or "round"
    )
