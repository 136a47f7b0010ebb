"""What kohya's metadata says of a dataset, under its names, as plain data.

The forms are those of files trained with kohya's sd-scripts; the writer turns values into text.
No path is among them, only names of folders.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from .captions import tags_of
from .data import Dataset, Sample
from .report import bucket_rows
from .settings import DatasetSettings

Facts = dict[str, object]


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Folder to tag, in lower case, to the number of pictures that have it; most frequent first.

    Regularisation is not counted: its tags describe what is not trained.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in dataset.samples:
        if not sample.regularisation:
            tags = tags_of(sample.caption, dataset.settings)
            counts[sample.group].update(tag.lower() for tag in tags)
    return {
        group: dict(sorted(tags.items(), key=lambda item: (-item[1], item[0])))
        for group, tags in sorted(counts.items())
    }


def dataset_facts(dataset: Dataset, batch_size: int) -> Facts:
    """All ``ss_*`` values that a dataset decides, for the metadata of a trained file."""
    settings = dataset.settings
    spare = [sample for sample in dataset.samples if sample.regularisation]
    trained = [sample for sample in dataset.samples if not sample.regularisation]
    rows = bucket_rows(dataset, batch_size)
    sides = [side for row in rows for side in row.bucket]
    counts = {
        "num_train_images": sum(sample.repeats for sample in trained),
        "num_reg_images": sum(sample.repeats for sample in spare),
        "resolution": list(settings.target),
        "enable_bucket": settings.buckets,
        "min_bucket_reso": (settings.bucket_min or min(sides)) if settings.buckets else None,
        "max_bucket_reso": (settings.bucket_max or max(sides)) if settings.buckets else None,
        "tag_frequency": tag_frequency(dataset),
        "bucket_info": _bucket_info(dataset) if settings.buckets else None,
    }
    options = _options(settings)
    subsets = [*_subsets(trained, False, options), *_subsets(spare, True, options)]
    whole = {
        "is_dreambooth": True,
        "batch_size_per_device": batch_size,
        **counts,
        "subsets": subsets,
    }
    return {
        **{f"ss_{name}": value for name, value in (counts | options).items()},
        "ss_resolution": str(settings.target),
        "ss_num_validation_images": len(dataset.validation),
        "ss_num_batches_per_epoch": sum(row.batches for row in rows),
        "ss_bucket_no_upscale": not settings.upscale,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_caption_tag_dropout_rate": settings.tag_dropout,
        "ss_prior_loss_weight": settings.regularisation_weight,
        "ss_dataset_dirs": _folders(trained),
        "ss_reg_dataset_dirs": _folders(spare),
        "ss_datasets": [whole],
    }


def _options(settings: DatasetSettings) -> Facts:
    return {
        "color_aug": False,
        "flip_aug": settings.flip > 0,
        "random_crop": settings.crop == "random",
        "shuffle_caption": settings.shuffle_tags,
        "keep_tokens": settings.keep_tags,
    }


def _bucket_info(dataset: Dataset) -> Facts:
    rows = [row for row in bucket_rows(dataset) if row.picks]
    shapes = [
        abs(s.size[0] / s.size[1] - s.fit.bucket[0] / s.fit.bucket[1]) for s in dataset.samples
    ]
    return {
        "buckets": {
            str(number): {"resolution": list(row.bucket), "count": row.picks}
            for number, row in enumerate(rows)
        },
        "mean_img_ar_error": sum(shapes) / len(shapes),
    }


def _grouped(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    return dict(sorted(groups.items()))


def _folders(samples: Sequence[Sample]) -> dict[str, Facts]:
    return {
        group: {"n_repeats": members[0].repeats, "img_count": len(members)}
        for group, members in _grouped(samples).items()
    }


def _subsets(samples: Sequence[Sample], is_reg: bool, options: Facts) -> list[Facts]:
    return [
        {
            "img_count": len(members),
            "num_repeats": members[0].repeats,
            **options,
            "image_dir": group,
            "class_tokens": None,
            "is_reg": is_reg,
        }
        for group, members in _grouped(samples).items()
    ]
