"""Batches of a dataset: pictures become latents once, captions conditions once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .dataset.cache import Cache, latents_key, mask_key, text_key
from .dataset.captions import caption_of, captions_vary, plain_caption
from .dataset.data import Dataset
from .dataset.order import Order, Pick, validation_batches
from .dataset.pictures import mask_tensor, picture_tensor
from .feed import Batch, SampleKey
from .trainable import PictureSize, Trainable

_DTYPE = torch.float32


class PictureFeed:
    """See ``Feed``.

    Args:
        model: Makes latents and conditions.
        dataset: Of a scan.
        batch_size: Pictures of a batch.
        seed: Of the run.
        cache: Folder of latents and conditions.
        encodes_captions: Whether the text encoders are frozen, so that captions are encoded here.
    """

    def __init__(
        self,
        model: Trainable,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        cache: Path,
        encodes_captions: bool,
    ) -> None:
        self._model, self._dataset, self._seed = model, dataset, seed
        self._settings, self._cache = dataset.settings, Cache(cache)
        self._encodes = encodes_captions
        self._order = Order(dataset, batch_size, seed)
        self._validation = validation_batches(dataset, batch_size)
        self.batches_per_epoch = self._order.batches_per_epoch
        self.size = dataset.settings.target

    def picks(self, number: int) -> Sequence[Pick]:
        """See ``Feed.picks``."""
        return self._order.batch_at(number)

    def load(self, picks: Sequence[Pick], keys: Sequence[SampleKey]) -> Batch:
        """See ``Feed.load``."""
        captions = [
            caption_of(pick.sample, self._settings, self._seed, pick.epoch, pick.repeat)
            for pick in picks
        ]
        return self._batch(picks, captions)

    def validation(self) -> Sequence[Batch]:
        """See ``Feed.validation``."""
        return [
            self._batch(picks, [plain_caption(pick.sample, self._settings) for pick in picks])
            for picks in self._validation
        ]

    def _batch(self, picks: Sequence[Pick], captions: Sequence[str]) -> Batch:
        return Batch(
            torch.stack([self._latents(pick) for pick in picks]),
            captions,
            [_size(pick) for pick in picks],
            torch.tensor([pick.sample.weight for pick in picks]),
            self._masks(picks),
            [self._text(caption) for caption in captions] if self._encodes else None,
        )

    def _latents(self, pick: Pick) -> Tensor:
        def build() -> Mapping[str, Tensor]:
            return {"latents": self._model.encode_pictures(picture_tensor(pick)[None])[0]}

        key = latents_key(pick, self._model.autoencoder, _DTYPE)
        return self._cache.get(key, build)["latents"]

    def _text(self, caption: str) -> Mapping[str, Tensor]:
        def build() -> Mapping[str, Tensor]:
            with torch.no_grad():
                (found,) = self._model.encode_captions([caption])
            return found

        if captions_vary(self._settings):
            return build()
        return self._cache.get(text_key(caption, self._model.text, _DTYPE), build)

    def _masks(self, picks: Sequence[Pick]) -> Tensor | None:
        if all(pick.sample.mask is None for pick in picks):
            return None
        return torch.stack([self._mask(pick) for pick in picks])

    def _mask(self, pick: Pick) -> Tensor:
        floor = self._settings.mask_floor
        if pick.sample.mask is None:
            width, height = pick.sample.fit.bucket
            return torch.ones(1, height // 8, width // 8)
        key = mask_key(pick, floor)
        return self._cache.get(key, lambda: {"mask": mask_tensor(pick, floor)})["mask"]


def _size(pick: Pick) -> PictureSize:
    (width, height), (left, top) = pick.sample.size, pick.crop
    if pick.flip:  # the picture is mirrored, and so is its place
        left = pick.sample.fit.room[0] - left
    trained_width, trained_height = pick.sample.fit.bucket
    return PictureSize((height, width), (top, left), (trained_height, trained_width))
