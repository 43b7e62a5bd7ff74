"""What the reward-hacking audit found, as the verdict keeps it and the page shows it; eval/checks/audit.py makes it."""

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    label: str
    value: float
    low: float | None
    high: float | None
    """The interval; None for a figure that was given without one."""
    unit: str
    threshold: float | None
    """What the interval is held against; None for what is only shown."""
    suspicious: bool
    noted: bool
    sentence: str


class Audit(BaseModel):
    """What was looked at, the gain in reward first; or why there is nothing to audit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    impossible: str | None = None
    findings: list[Finding] = []

    @property
    def is_suspicious(self) -> bool:
        """Whether anything is."""
        return any(finding.suspicious for finding in self.findings)
