"""What an adapter's record may say before its base is known."""

import json

import pytest

from glmft.errors import ConfigError
from glmft.inference.loading import locate


@pytest.mark.parametrize("value", [[], {}, 4, True, "4" * 101])
@pytest.mark.parametrize("name", ["base_quantization", "base_embedding", "base_fingerprint"])
def test_a_record_of_a_wrong_type_is_one_line(name, value, official_folders, tmp_path):
    base = str(official_folders["glm2"])
    record = {"train_type": "lora", "base_model_name_or_path": base, name: value}
    (tmp_path / "glmft_adapter.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"glmft_adapter\.json: {name} is .*; it must be a text"):
        locate(tmp_path)
