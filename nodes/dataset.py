"""Training Dataset: pictures and captions, looked at before anything is trained."""

from typing import Any

from .base import Node

_CROPS = ["center", "random"]
_MASKS = ["none", "alpha", "folder"]


class LoraWorkbenchDataset(Node):
    """Scans a folder of pictures."""

    DISPLAY_NAME = "Training Dataset"
    DESCRIPTION = (
        "Reads a folder of pictures with captions: which size each is trained at, and what is "
        "wrong with them: missing captions, tiny or damaged pictures, duplicates."
    )
    CATEGORY = "LoRA Workbench/training"
    SEARCH_ALIASES = ("lora training images", "captions", "image folder", "aspect buckets")
    RETURN_TYPES = ("LW_DATASET", "IMAGE")
    RETURN_NAMES = ("dataset", "preview")
    OUTPUT_TOOLTIPS = (
        "For Train LoRA.",
        "The pictures by size, with the start of their captions and their problems.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        return {
            "required": {
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A folder below ComfyUI's input folder. Captions lie beside "
                        "their pictures as .txt files; a folder 10_name counts its pictures ten "
                        "times.",
                    },
                ),
                "resolution": _whole(
                    512,
                    64,
                    2048,
                    "Pixels: each picture keeps its shape and "
                    "gets about the area of a square of this side.",
                    8,
                ),
            },
            "optional": {
                "trigger_word": _text(
                    "Words before each caption, such as a name for what is trained."
                ),
                "default_caption": _text(
                    "For pictures without a caption; empty takes the "
                    "folder's name after its number."
                ),
                "repeats": _whole(1, 1, 10000, "How often each picture is shown in an epoch."),
                "shuffle_tags": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "A new order of the captions' tags each time."},
                ),
                "keep_tags": _whole(0, 0, 100, "So many first tags stay in front."),
                "caption_dropout": _share("Share of the pictures shown without a caption."),
                "flip": _share("Share of the pictures shown mirrored."),
                "crop": (
                    _CROPS,
                    {
                        "default": "center",
                        "tooltip": "What is kept of a picture that is longer than its size.",
                    },
                ),
                "buckets": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "Keep the pictures' shapes; off cuts all to squares.",
                    },
                ),
                "bucket_step": _whole(64, 8, 256, "Pixels: sides are multiples of it.", 8),
                "masks": (
                    _MASKS,
                    {
                        "default": "none",
                        "tooltip": "Where the loss counts: by the "
                        "pictures' opacity, or by pictures of the same names in mask_folder.",
                    },
                ),
                "mask_folder": _text("A folder below the input folder, for masks: folder."),
                "regularisation": _text(
                    "A folder below the input folder: pictures of what the model shall not forget."
                ),
                "validation": _share("Share of the pictures kept apart to measure with."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, folder: str = "", **others: Any) -> str:  # noqa: N802  ComfyUI's name
        """Changes when a file of the folders does."""
        names = (folder, others.get("regularisation") or "", others.get("mask_folder") or "")
        return cls.host.pictures_fingerprint([name for name in names if name])

    def execute(
        self,
        folder: str,
        resolution: int,
        trigger_word: str = "",
        default_caption: str = "",
        repeats: int = 1,
        shuffle_tags: bool = False,
        keep_tags: int = 0,
        caption_dropout: float = 0.0,
        flip: float = 0.0,
        crop: str = "center",
        buckets: bool = True,
        bucket_step: int = 64,
        masks: str = "none",
        mask_folder: str = "",
        regularisation: str = "",
        validation: float = 0.0,
    ) -> dict[str, Any]:
        """Scan; the report is also shown on the node."""
        from ..training.dataset.scan import scan
        from ..training.dataset.settings import DatasetSettings
        from ..training.dataset.sheet import sheet_tensor
        from .training_report import dataset_report

        found = scan(
            DatasetSettings(
                folder=self._place(folder),
                repeats=repeats,
                default_caption=default_caption,
                prefix=trigger_word,
                shuffle_tags=shuffle_tags,
                keep_tags=keep_tags,
                caption_dropout=caption_dropout,
                resolution=resolution,
                buckets=buckets,
                bucket_step=bucket_step,
                crop=crop,
                flip=flip,
                regularisation=self._place(regularisation),
                masks=masks,
                mask_folder=self._place(mask_folder),
                validation=validation,
            )
        )
        return {"ui": dataset_report(found).to_ui(), "result": (found, sheet_tensor(found))}

    def _place(self, name: str) -> str:
        return str(self.host.pictures_folder(name)) if name else ""


def _whole(
    default: int, least: int, most: int, tooltip: str, step: int = 1
) -> tuple[str, dict[str, Any]]:
    options = {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}
    return "INT", options


def _share(tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip}


def _text(tooltip: str) -> tuple[str, dict[str, Any]]:
    return "STRING", {"default": "", "tooltip": tooltip}
