"""Models by name and by path: the catalog's entries, the way from a name to a spec, and files that are no good."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lorafa_prof import catalog
from lorafa_prof.catalog import load_model, model_catalog, model_entry, model_names, spec_from_config
from lorafa_prof.catalog.json_files import DEEPEST_NESTING, LARGEST_FILE, one_line, read_json_object
from lorafa_prof.errors import BadInputError, LorafaProfError, UnknownNameError
from tests.catalog.test_configs import same_as_modules, same_as_transformers

SMALL = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}


def write(path: Path, content: object) -> Path:
    """Write JSON, text or bytes to `path`."""
    data = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


class TestEntries:
    """Every entry of the catalog."""

    @pytest.mark.parametrize("name", model_names())
    def test_agrees_with_transformers(self, name: str) -> None:
        """Its fields are those of the configuration and the modules that transformers builds from the same dict."""
        spec = load_model(name)
        assert spec.name == name
        same_as_transformers(spec)
        two_layers = {key: 2 for key in ("num_hidden_layers", "n_layer", "num_layers") if key in spec.config}
        assert two_layers
        shortened = {**spec.config, **two_layers, "layer_types": None}
        same_as_modules(spec_from_config(name, {k: v for k, v in shortened.items() if v is not None}))

    def test_known_figures(self) -> None:
        """Figures that people know by heart."""
        llama, qwen, roberta = load_model("llama2-7b"), load_model("qwen2.5-7b"), load_model("roberta-base")
        assert (llama.hidden_size, llama.num_layers, llama.intermediate_size) == (4096, 32, 11008)
        assert (llama.parameters, llama.max_positions, llama.attention_bias) == (6738415616, 4096, False)
        assert (qwen.attention_bias, qwen.attention_out_bias, qwen.num_kv_heads) == (True, False, 4)
        assert (roberta.task, roberta.max_positions, roberta.type_vocab_size) == ("seq-cls", 512, 1)

    @pytest.mark.parametrize("name", model_names())
    def test_found_by_every_name(self, name: str) -> None:
        """The alias, the hub id, each further alias and those of copies lead to the same entry, in any case."""
        entry = model_entry(name)
        assert entry["source"]
        for other in [entry["hub_id"], *entry["aliases"], *entry.get("also", ())]:
            assert model_entry(other)["name"] == name
            assert load_model(other.upper()) == load_model(name)

    def test_one_file_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An alias costs one file, however large the catalog is."""
        read: list[str] = []

        def spy(path: str) -> dict[str, Any]:
            read.append(os.path.basename(path))
            return read_json_object(path)

        monkeypatch.setattr(model_catalog, "read_json_object", spy)
        load_model("Llama2-7B")
        assert read == ["llama2-7b.json"]

    def test_the_package_hands_out_its_names(self) -> None:
        """Each public name comes from its module when it is asked for, and no other name does."""
        assert all(callable(getattr(catalog, name)) for name in catalog.__all__)
        assert not hasattr(catalog, "load_anything")

    def test_nothing_heavy_is_imported(self) -> None:
        """Loading a model imports none of the large libraries."""
        code = (
            "import sys; from lorafa_prof.catalog import load_model; load_model('llama2-7b');"
            "print({'torch', 'transformers', 'numpy', 'pandas', 'huggingface_hub'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "set()"


class TestUnknownNames:
    """A name that leads nowhere."""

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("lama2-7b", "llama2-7b"),
            ("Llama-2-7b-hf", "llama2-7b"),
            ("qwen25", "qwen2.5-0.5b"),
            ("bigcode", "bigcode/gpt_bigcode-santacoder"),
        ],
    )
    def test_the_nearest_are_offered(self, name: str, nearest: str) -> None:
        """Aliases and hub ids that resemble it."""
        with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean ") as caught:
            load_model(name)
        assert nearest in caught.value.nearest
        with pytest.raises(UnknownNameError):
            model_entry(name)

    @pytest.mark.parametrize(
        "name", ["", " ", "\0", "a\0b", "no\nsuch", "\udcff", "é" * 300, "x" * 5000, "a/b/c", "%", ".", "~\0"]
    )
    def test_strange_names(self, name: str) -> None:
        """Whatever cannot be a model is refused in one printable line."""
        with pytest.raises(BadInputError) as caught:
            load_model(name)
        assert str(caught.value).isprintable()

    def test_only_strings(self) -> None:
        """A path object or a number is not a name."""
        with pytest.raises(BadInputError, match="called by a string, not a int"):
            load_model(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["../models/gpt2", "models/gpt2", "..", "/", "gpt2/../gpt2", "gpt2.json"])
    def test_names_do_not_walk(self, name: str) -> None:
        """A name is no path into the catalog's folder."""
        with pytest.raises(LorafaProfError):
            load_model(name, offline=True)


class TestPaths:
    """A configuration on disk."""

    def test_a_file_and_its_folder(self, tmp_path: Path) -> None:
        """The path of a config.json, or of the folder that holds it; the spec is called what the user called it."""
        file = write(tmp_path / "config.json", SMALL)
        spec = load_model(str(file))
        assert (spec.name, spec.num_layers, spec.parameters) == (str(file), 3, None)
        assert load_model(str(tmp_path)).config == spec.config == SMALL

    def test_relative_and_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path that looks like a hub id, a bare file name, and a path under the home folder."""
        (tmp_path / "my").mkdir()
        write(tmp_path / "my" / "config.json", SMALL)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert load_model("my").num_layers == load_model("~/my").num_layers == 3
        (tmp_path / "my" / "model").symlink_to(tmp_path / "my")
        assert load_model("my/model").num_layers == 3

    def test_the_catalog_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder called like an alias does not shadow it; written as a path, it is meant."""
        (tmp_path / "gpt2").mkdir()
        write(tmp_path / "gpt2" / "config.json", SMALL)
        monkeypatch.chdir(tmp_path)
        assert load_model("gpt2").architecture == "gpt2"
        assert load_model("./gpt2").architecture == "llama"

    @pytest.mark.parametrize("name", ["./none", "/none/config.json", "none.json", "~/none/", "none/"])
    def test_nothing_there(self, name: str) -> None:
        """What is written like a path is not looked for elsewhere."""
        with pytest.raises(BadInputError, match="no such file or folder"):
            load_model(name)

    def test_folder_without_configuration(self, tmp_path: Path) -> None:
        """The folder is named."""
        with pytest.raises(BadInputError, match=r"the folder has no config\.json"):
            load_model(str(tmp_path))
        (tmp_path / "config.json").mkdir()
        with pytest.raises(BadInputError, match="not a regular file"):
            load_model(str(tmp_path))

    def test_links(self, tmp_path: Path) -> None:
        """A link that leads nowhere, and two that lead to each other."""
        (tmp_path / "dangling").symlink_to(tmp_path / "gone")
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(BadInputError, match="no such file"):
            load_model(str(tmp_path / "dangling"))
        with pytest.raises(BadInputError, match=r"(?i)symbolic links|no such file"):
            load_model(str(tmp_path / "a"))

    def test_file_where_a_folder_is_expected(self, tmp_path: Path) -> None:
        """A path that goes on behind a file."""
        file = write(tmp_path / "x.json", SMALL)
        with pytest.raises(BadInputError, match="no such file or folder"):
            load_model(str(file / "config.json"))

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        """A file that the user may not read."""
        write(tmp_path / "config.json", SMALL).chmod(0)
        with pytest.raises(BadInputError, match="Permission denied"):
            load_model(str(tmp_path))

    def test_refused_by_the_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of the file system becomes one line, whoever runs the test."""
        file = write(tmp_path / "config.json", SMALL)

        def refuse(*args: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(BadInputError, match=r"config\.json: Permission denied$"):
            load_model(str(file))


class TestBadFiles:
    """Contents that no configuration has."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not valid JSON"),
            (b"{", "not valid JSON"),
            (b'{"model_type": "llama"', "not valid JSON"),
            (b"[]", "must hold a JSON object, not a list"),
            (b"3", "must hold a JSON object, not a number"),
            (b"null", "must hold a JSON object, not null"),
            (b"true", "must hold a JSON object, not true"),
            (b'"x"', "must hold a JSON object, not a string"),
            (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
            (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
            ('{"a": 1}'.encode("utf-16"), "not valid UTF-8 at byte 0"),
            (b'{"model_type": "llama", "model_type": "gpt2"}', "key 'model_type' is there twice"),
            (b'{"a": {"b": 1, "b": 1}}', "key 'b' is there twice"),
            (b'{"hidden_size": NaN}', "hidden_size holds NaN"),
            (b'{"rope": {"factor": [-Infinity]}}', "rope holds -Infinity"),
            (b'{"eps": 1e999}', "eps holds 1e999, which is not finite"),
            (b'{"hidden_size": 1' + b"0" * 4300 + b"}", "hidden_size holds a number of 4301 digits"),
            (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "a is nested too deeply"),
            (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
            (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
            (b'{"a": "' + b"x" * LARGEST_FILE + b'"}', "too large for a configuration"),
            (
                b'{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": "4096"}',
                "hidden_size must be an integer, not '4096'",
            ),
            (b'{"hidden_size": 4096}', "no model_type"),
        ],
    )
    def test_refused(self, tmp_path: Path, content: bytes, message: str) -> None:
        """One printable line that names the file and, where there is one, the key; and nothing is written."""
        file = write(tmp_path / "config.json", content)
        with pytest.raises(BadInputError) as caught:
            load_model(str(file))
        assert str(caught.value).startswith(one_line(str(file)))
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
        assert os.listdir(tmp_path) == ["config.json"]

    def test_accepted(self, tmp_path: Path) -> None:
        """Long and nested as real configurations are."""
        nested: Any = 1
        for _ in range(DEEPEST_NESTING - 1):
            nested = [nested]
        content = {"digits": 10**39, "small": 1e-300, "nested": nested, "text": "é", "none": None}
        assert read_json_object(str(write(tmp_path / "x.json", content))) == content

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
    def test_fifo(self, tmp_path: Path) -> None:
        """A FIFO without a writer does not hang the program."""
        os.mkfifo(tmp_path / "config.json")
        for name in (str(tmp_path / "config.json"), str(tmp_path)):
            assert "not a regular file" in self._refused_in_time(name)

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "/dev/tty"])
    def test_device(self, tmp_path: Path, device: str) -> None:
        """A device is not read, nor what a link calls config.json."""
        if not os.path.exists(device) or os.path.isfile(device):
            pytest.skip(f"no device {device}")
        (tmp_path / "config.json").symlink_to(device)
        for name in (device, str(tmp_path)):
            assert "not a regular file" in self._refused_in_time(name)

    @staticmethod
    def _refused_in_time(name: str) -> str:
        messages: list[str] = []

        def load() -> None:
            try:
                load_model(name)
            except BadInputError as error:
                messages.append(str(error))

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert messages, f"{name} was not refused within ten seconds"
        return messages[0]

    def test_a_file_that_grows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The limit holds for what is read, not only for the size that the system tells."""
        file = write(tmp_path / "config.json", b"{" + b" " * LARGEST_FILE + b"}")
        true_stat = os.stat

        class Small:
            st_mode, st_size = true_stat(file).st_mode, 0

        monkeypatch.setattr("lorafa_prof.catalog.json_files.os.stat", lambda path: Small)
        with pytest.raises(BadInputError, match="too large"):
            read_json_object(str(file))

    def test_nul_in_the_path(self) -> None:
        """Refused before the system sees it."""
        with pytest.raises(BadInputError, match=r"^a\\x00b: not a usable path$"):
            read_json_object("a\0b")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A file of anything gives a spec or our own error."""
    file = write(tmp_path_factory.getbasetemp() / "any.json", content)
    with contextlib.suppress(LorafaProfError):
        load_model(str(file))


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [("plain é", 10, "plain é"), ("a\nb\x1b\udcff", 10, r"a\nb\x1b\udcff"), ("abcdefgh", 4, "ab...gh")],
)
def test_one_line(text: str, limit: int, shown: str) -> None:
    """Unprintable characters are escaped, and what is too long loses its middle."""
    assert one_line(text, limit) == shown
