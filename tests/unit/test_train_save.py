"""Saving the model of a run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from anew.errors import UserError
from anew.train.model import save_model


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_model(tmp_path: Path, error: Exception) -> None:
    def save_pretrained(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    config = SimpleNamespace(use_cache=False)
    model = SimpleNamespace(config=config, generation_config=config, save_pretrained=save_pretrained)
    old = tmp_path / "model" / "model.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"old")
    with pytest.raises(UserError, match=r"cannot write the model to .*No space left"):
        save_model(model, None, tmp_path / "model")
    assert old.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
