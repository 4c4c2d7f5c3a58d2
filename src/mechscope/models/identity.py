"""Identity: the name under which a model stands in records, and the text that sets its unit of doses."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a record says about a model.

    Args:
        name: Id, folder or bundled name.
        revision: Commit of the checkpoint where there is one.
        calibration: Text whose residual norms set the unit of doses.
    """

    name: str
    revision: str = ""
    calibration: tuple[str, ...] = field(default=())
