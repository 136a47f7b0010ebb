"""Models for the embedded host."""

import pytest

from . import tiny_checkpoints


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of models: a small checkpoint of SD1.5's structure with all of CLIP's tokens."""
    models = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "loras"):
        (models / folder).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_checkpoints, "VOCABULARY", 49408)
        tiny_checkpoints.tiny_checkpoint.cache_clear()
        tiny_checkpoints.write_tiny(models / "checkpoints" / "tiny.safetensors", "sd15")
        tiny_checkpoints.tiny_checkpoint.cache_clear()
    return models
