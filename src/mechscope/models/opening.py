"""Opening: from an id, a folder or a model in memory to a checked `Model`.

Refuses what is not a model, pickles, NaN weights, and whatever fails the self-check. `trust_remote_code` is off
unless asked for by name.
"""

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechscope.models.anatomy import Anatomy, registered_families
from mechscope.models.binding import Binding, anatomy_of
from mechscope.models.identity import Identity
from mechscope.models.model import Model
from mechscope.models.self_check import check_model, refuse_if_failed
from mechscope.models.structure import match_by_structure
from mechscope.vocabulary.errors import (
    NonFiniteWeights,
    NotAModel,
    OptionalPackageMissing,
    UnsafeFile,
    UnsupportedModel,
)

BUNDLED = Path(__file__).parent / "bundled"
_DTYPES = ("bfloat16", "float16", "float32", "float64")


def load(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Model:
    """Open a bundled specimen, a local folder, or a Hugging Face id.

    Args:
        name: "village", a folder with `config.json` and safetensors, or "org/name".
        dtype: "bfloat16", "float16", "float32", "float64"; "auto" takes the checkpoint's own, and float32 for
            bundled specimens.
        device: "cpu", "cuda", ...; ignored if `device_map` is given.
        device_map: Passed to transformers for models larger than one device. Needs accelerate. Every weight must
            find a device: weights that are offloaded to the disk, or from a GPU to memory, are refused.
        revision: Commit or tag of a hub checkpoint.
        trust_remote_code: Run code that comes with a checkpoint. Off unless you say so.
        check: Run the self-check. Only turn it off to look at a model that fails it.

    Raises:
        NotAModel: nothing there that transformers can open, or weights without a language head.
        UnsafeFile: the weights exist only as a pickle.
        NonFiniteWeights: NaN or infinity in the weights.
        UnsupportedModel: no adapter, and the structure could not be matched; or offloaded weights.
        OptionalPackageMissing: a `device_map` without accelerate.
        SelfCheckFailed: the opened model does not do what its adapter says.

    Cost: reading the weights, and a few forward passes on a probe of a dozen tokens.
    """
    is_bundled = str(name) in bundled_names()  # a path joined to BUNDLED may lie anywhere
    source = str(BUNDLED / str(name) if is_bundled else name)
    refuse_unless_openable(source)
    if device_map is not None and find_spec("accelerate") is None:
        raise OptionalPackageMissing(
            "A device_map needs the package accelerate.",
            got=f"device_map={device_map!r}",
            because="transformers places a model's parts on several devices with it",
            instead="pip install 'mechscope[large]', or device=...",
        )
    wanted = "float32" if is_bundled and dtype == "auto" else dtype
    if wanted not in (*_DTYPES, "auto"):
        raise NotAModel(
            f'"{dtype}" is not a dtype that models run in.', got=dtype, instead=", ".join(_DTYPES)
        )
    _register_native()
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
    }
    try:
        hf, report = _class_for(source, revision, trust_remote_code).from_pretrained(
            source,
            dtype=wanted if wanted == "auto" else getattr(torch, wanted),
            device_map=device_map,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise NotAModel(
            f'"{name}" could not be opened as a language model.',
            got=str(name),
            because=str(error).strip().splitlines()[0][:300],
            instead="a folder with config.json and *.safetensors, a bundled name "
            f"({', '.join(bundled_names())}), or a Hugging Face id (needs a network)",
        ) from error
    _refuse_drawn_weights(hf, report["missing_keys"], str(name))
    if device_map is None:
        hf = hf.to(device=device)  # pyright: ignore[reportCallIssue] - the wrapper's type keeps `self`
    hf.eval()
    tokenizer = _tokenizer(source, revision, trust_remote_code)
    identity = Identity(name=str(name), revision=revision or "", calibration=_calibration(Path(source)))
    identity = replace(identity, is_folder=not is_bundled and Path(source).exists())
    return _open(hf, tokenizer, identity, check=check)


def wrap(hf_model: nn.Module, tokenizer: Any = None, *, name: str | None = None, check: bool = True) -> Model:
    """Open a transformers model that is already in memory; it is left as it was found.

    Args:
        hf_model: A causal or masked language model from `transformers`, in evaluation mode.
        tokenizer: Its tokenizer, or None if you only give token ids.
        name: What records call it; the class name by default.
        check: As in `load`.

    Raises:
        As `load`, and TrainingMode if the model is in training mode.
    """
    from transformers import PreTrainedModel

    if not isinstance(hf_model, PreTrainedModel):
        raise NotAModel(
            "ms.wrap needs a transformers model.",
            got=type(hf_model).__name__,
            because="it has no configuration to find its parts by",
            instead="ms.load(id_or_folder), or AutoModelForCausalLM.from_pretrained(...)",
        )
    called = name or type(hf_model).__name__
    return _open(hf_model, tokenizer, Identity(name=called, is_folder=Path(called).is_dir()), check=check)


def _class_for(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The library's class for a checkpoint: with a masked-language head if it was saved with one, else causal."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    saved_as: list[str] = config.architectures or []
    is_masked = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in saved_as)
    return AutoModelForMaskedLM if is_masked else AutoModelForCausalLM


def _refuse_drawn_weights(hf: nn.Module, missing: Iterable[str], name: str) -> None:
    """Refuse a checkpoint that lacks weights: the library would draw them at random."""
    drawn = sorted({*missing} & {path for path, _ in hf.named_parameters()})
    if drawn:
        raise NotAModel(
            f'"{name}" lacks weights of {type(hf).__name__}.',
            got=", ".join(drawn[:4]) + (f" and {len(drawn) - 4} more" if len(drawn) > 4 else ""),
            because="they are not in the files, and would be drawn at random",
            instead="a checkpoint that was saved with its language head",
        )


def bundled_names() -> list[str]:
    """Names of the specimens that ship with the package."""
    return sorted(path.parent.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob("config.json"))


def name_to_open(recorded: str) -> str:
    """What opens the model that a record names: the name itself, or the bundled specimen whose last part it is.

    Versions up to 0.1.0 recorded "compiled/reverse" as "reverse".
    """
    names = bundled_names()
    if recorded in names or Path(recorded).exists():
        return recorded
    fitting = [name for name in names if name.rsplit("/", 1)[-1] == recorded]
    return fitting[0] if len(fitting) == 1 else recorded


def refuse_unless_openable(source: str) -> None:
    """Refuse a local folder that holds no model, or only a pickle."""
    folder = Path(source)
    if not folder.exists():
        return
    if folder.is_file() or not (folder / "config.json").is_file():
        raise NotAModel(
            f'"{source}" is not a model folder.',
            got=source,
            because="it is a file" if folder.is_file() else "there is no config.json in it",
            instead="a folder as written by save_pretrained",
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        if pickles:
            raise UnsafeFile(
                "The weights are in a pickle, which can run code when it is opened.",
                got=", ".join(pickles),
                because="only safetensors are opened",
                instead="convert them once where you trust the file: model.save_pretrained(folder)",
            )
        raise NotAModel(
            f'"{source}" holds no weights.', got=source, because="there is no *.safetensors file in it"
        )


def _open(hf: nn.Module, tokenizer: Any, identity: Identity, *, check: bool) -> Model:
    refuse_offloaded(hf)
    refuse_non_finite(hf)
    anatomy = describe(hf)
    model = Model(Binding(hf, anatomy), tokenizer, identity=identity)
    if check:
        refuse_if_failed(check_model(model), model)
    return model


def describe(hf: nn.Module) -> Anatomy:
    """The anatomy of a model: its family's adapter, else matched by structure."""
    config: Any = hf.config
    found = anatomy_of(config, registered_families()) or match_by_structure(hf)
    if found is None:
        raise UnsupportedModel(
            f'There is no adapter for "{config.model_type}", and its structure could not be matched.',
            got=type(hf).__name__,
            because="no list of layers with norms, attention and an MLP was recognised",
            instead="write an adapter: one file of data (CONTRIBUTING.md)",
        )
    return found


def refuse_offloaded(hf: nn.Module) -> None:
    """Refuse weights that are nowhere until their module runs, naming the tensors."""
    away = [name for name, weight in hf.named_parameters() if weight.is_meta]
    if away:
        raise UnsupportedModel(
            "Some of this model's weights are offloaded.",
            got=", ".join(away[:3]) + (f" and {len(away) - 3} more" if len(away) > 3 else ""),
            because="they are loaded for their module's own call only, so they can be neither fingerprinted nor "
            "read as matrices, and single columns can't be unembedded",
            instead="a device_map that gives every part a device, or a narrower dtype",
        )


def refuse_non_finite(hf: nn.Module) -> None:
    """Refuse NaN or infinite weights, naming the tensors."""
    bad = [name for name, weight in hf.named_parameters() if not bool(torch.isfinite(weight.sum()))]
    bad = [name for name in bad if not bool(torch.isfinite(dict(hf.named_parameters())[name]).all())]
    if bad:
        raise NonFiniteWeights(
            "The checkpoint holds NaN or infinite weights.",
            got=", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else ""),
            because="every number computed from them would be meaningless",
            instead="check the download, or load in a wider dtype",
        )


def _register_native() -> None:
    from mechscope.models.native import register

    register()


def _tokenizer(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def _calibration(folder: Path) -> tuple[str, ...]:
    path = folder / "calibration.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
