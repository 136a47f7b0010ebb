"""What a user can choose about training pictures, and which choices are refused."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ...lora_core.errors import LoraError, UnknownChoiceError

Size = tuple[int, int]
"""Width and height in pixels, as Pillow says it."""

SIDE_MULTIPLE = 8  # pixels of one latent
_CHOICES = {"crop": ("center", "random"), "masks": ("none", "alpha", "folder")}
_SHARES = ("flip", "caption_dropout", "tag_dropout", "mask_floor")


@dataclass(frozen=True)
class DatasetSettings:
    """The options of one dataset.

    Attributes:
        folder: Pictures, with their captions beside them, in it and in all folders below. A folder
            named ``10_anything`` shows its pictures ten times in an epoch, as in kohya's tools.
        repeats: Multiplies the number in the folders' names (1 where there is none).

        caption_extension: Ending of the caption files: ``a.png`` is described by ``a.txt``.
        default_caption: For pictures without a caption file; empty takes the folder's name after
            the number (``10_sks dog`` gives ``sks dog``).
        prefix: Words before each caption, such as a trigger word; not for regularisation.
        suffix: Words after each caption; not for regularisation.
        tag_separator: What lies between the tags of a caption.
        shuffle_tags: New order of the tags each time that a picture is shown.
        keep_tags: So many first tags are neither shuffled nor dropped.
        caption_dropout: Share of the pictures that are shown with an empty caption, 0 to 1.
        tag_dropout: Share of the tags that are left out, 0 to 1.

        resolution: Side of a square, or width and height, pixels; its area is that of all buckets.
        buckets: Keep the shapes of pictures by training in several sizes of about that area;
            off cuts every picture to ``resolution``.
        bucket_step: The sides of buckets are multiples of it, pixels.
        bucket_min: Shortest side of a bucket, pixels; None is half of the resolution's.
        bucket_max: Longest side of a bucket, pixels; None is twice that of the resolution.
        upscale: Enlarge small pictures; off gives them buckets of their own size.
        enlarged_note: Pictures that are enlarged by more than this factor are reported.
        crop: Which part of the overlap is cut off: ``"center"``, or ``"random"``.
        crop_places: Random crops of one picture; the places are fixed by its content, so that
            their latents can be cached.
        flip: Share of the pictures that are shown mirrored, 0 to 1.

        regularisation: Folder of pictures of what the model shall not forget; as many of them are
            shown in an epoch as training pictures, each at least once.
        regularisation_weight: Of their loss.
        regularisation_caption: For those without a caption file; empty takes the folder's name.

        masks: Where the loss counts: ``"alpha"`` by the pictures' own opacity, ``"folder"`` by the
            brightness of pictures of the same relative name in ``mask_folder``.
        mask_folder: Of the masks.
        mask_floor: Weight of the loss where a mask is black, 0 to 1.

        validation: Share of the pictures that are never trained on, 0 to below 1; which ones
            depends on their content, so that more pictures in the folder change nothing for these.
        validation_seed: Another draw of them.
        validation_folder: Takes all pictures of another folder instead.
    """

    folder: str
    repeats: int = 1

    caption_extension: str = ".txt"
    default_caption: str = ""
    prefix: str = ""
    suffix: str = ""
    tag_separator: str = ","
    shuffle_tags: bool = False
    keep_tags: int = 0
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0

    resolution: int | Size = 512
    buckets: bool = True
    bucket_step: int = 64
    bucket_min: int | None = None
    bucket_max: int | None = None
    upscale: bool = True
    enlarged_note: float = 1.5
    crop: str = "center"
    crop_places: int = 4
    flip: float = 0.0

    regularisation: str = ""
    regularisation_weight: float = 1.0
    regularisation_caption: str = ""

    masks: str = "none"
    mask_folder: str = ""
    mask_floor: float = 0.0

    validation: float = 0.0
    validation_seed: int = 0
    validation_folder: str = ""

    @property
    def target(self) -> Size:
        """The resolution as width and height."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else (side[0], side[1])


NOT_CONTENT = frozenset(
    {"folder", "regularisation", "mask_folder", "validation_folder", "enlarged_note"}
)
"""Options that say where things lie or what is reported, and nothing about the training."""


def check(settings: DatasetSettings) -> None:
    """Refuse values that cannot be used and options that would do nothing.

    Raises:
        LoraError: names the option, its value and what to do.
    """
    if not settings.folder:
        raise LoraError(
            "No folder of training pictures is given.", {"folder": "empty"}, "choose a folder."
        )
    for name, known in _CHOICES.items():
        if getattr(settings, name) not in known:
            raise UnknownChoiceError(name, str(getattr(settings, name)), known)
    _check_numbers(settings)
    _check_sizes(settings)
    for name, works, needs in _conditions(settings):
        if not works and getattr(settings, name) != _DEFAULTS[name]:
            raise LoraError(
                f"The option {name} would do nothing.",
                {name: getattr(settings, name), "needs": needs},
                f"set {needs}, or leave {name} at {_DEFAULTS[name]!r}.",
            )


_DEFAULTS = {field.name: field.default for field in fields(DatasetSettings)}


def _conditions(settings: DatasetSettings) -> Iterator[tuple[str, bool, str]]:
    """An option, whether it does anything, and what it needs for that."""
    tags_change = settings.shuffle_tags or settings.tag_dropout > 0
    yield "keep_tags", tags_change, "shuffle_tags or tag_dropout"
    yield "crop_places", settings.crop == "random", "crop='random'"
    for name in ("bucket_step", "bucket_min", "bucket_max", "upscale"):
        yield name, settings.buckets, "buckets=True"
    yield "bucket_min", settings.upscale, "upscale=True"
    for name in ("regularisation_weight", "regularisation_caption"):
        yield name, bool(settings.regularisation), "a regularisation folder"
    yield "mask_folder", settings.masks == "folder", "masks='folder'"
    yield "masks", settings.masks != "folder" or bool(settings.mask_folder), "a mask_folder"
    yield "mask_floor", settings.masks != "none", "masks"
    yield "validation_seed", settings.validation > 0, "a share for validation"
    yield "validation_folder", not settings.validation, "validation=0"


def _check_numbers(settings: DatasetSettings) -> None:
    for name in _SHARES:
        _require(settings, name, _is_share(getattr(settings, name)), "a share from 0 to 1")
    share = settings.validation
    _require(settings, "validation", _is_share(share) and share < 1, "a share from 0 to below 1")
    for name in ("repeats", "bucket_step", "crop_places"):
        _require(settings, name, getattr(settings, name) >= 1, "a whole number from 1 up")
    _require(settings, "keep_tags", settings.keep_tags >= 0, "a whole number from 0 up")
    weight = settings.regularisation_weight
    _require(settings, "regularisation_weight", weight > 0, "a number above 0")
    _require(settings, "enlarged_note", settings.enlarged_note >= 1, "a factor from 1 up")
    extension = settings.caption_extension
    _require(
        settings, "caption_extension", extension.rfind(".") == 0 < len(extension) - 1, "'.txt'"
    )
    _require(settings, "tag_separator", bool(settings.tag_separator.strip()), "',' or another mark")


def _check_sizes(settings: DatasetSettings) -> None:
    multiple = f"a multiple of {SIDE_MULTIPLE}"
    for side in settings.target:
        _require(settings, "resolution", side > 0 and side % SIDE_MULTIPLE == 0, multiple)
    _require(settings, "bucket_step", settings.bucket_step % SIDE_MULTIPLE == 0, multiple)
    shortest, longest = min(settings.target), max(settings.target)
    if settings.buckets:
        _require(
            settings, "bucket_step", settings.bucket_step <= shortest, f"at most {shortest} pixels"
        )
    least, most = settings.bucket_min, settings.bucket_max
    if least is not None:
        _require(settings, "bucket_min", 0 < least <= shortest, f"1 to {shortest} pixels")
    if most is not None:
        _require(settings, "bucket_max", most >= longest, f"at least {longest} pixels")


def _is_share(value: float) -> bool:
    return not isinstance(value, bool) and 0 <= value <= 1


def _require(settings: DatasetSettings, name: str, fine: bool, expected: str) -> None:
    if not fine:
        raise LoraError(
            f"The option {name} of the dataset cannot be used.",
            {name: getattr(settings, name), "expected": expected},
            f"set {name} to {expected}.",
        )
