"""Identity: the name under which a model stands in records, and the text that sets its unit of doses."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a record says about a model.

    Args:
        name: Id, folder or bundled name.
        revision: Commit of the checkpoint where there is one.
        calibration: Text whose residual norms set the unit of doses.
        is_folder: It is a folder of somebody's: where that lies is not put on record.
    """

    name: str
    revision: str = ""
    calibration: tuple[str, ...] = field(default=())
    is_folder: bool = False

    @property
    def on_record(self) -> str:
        """What records call it: a bundled name or an id whole, so that it opens again; of a folder the last part."""
        return self.name.rstrip("/").rsplit("/", 1)[-1] if self.is_folder else self.name
