"""Models of the Hugging Face hub: from a cache on disk, and what is said when there is none. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorafa_prof.catalog import load_model
from lorafa_prof.catalog.hub import hub_config_path, looks_like_hub_id
from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnknownNameError

huggingface_hub = pytest.importorskip("huggingface_hub")

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
REPO = "some-owner/some.model_1"


def cached(home: Path, content: str, repo: str = REPO, file: str = "config.json") -> Path:
    """Lay `content` down as the hub's cache does: a reference to a commit, and the commit's files as links."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1").write_text(content)
    (folder / "snapshots" / "c0ffee" / file).symlink_to(folder / "blobs" / "1")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face home of this test's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the hub answer with a file of some size or with an error, and record what it is asked for."""

    def install(outcome: object, size: int | None = 100) -> list[str]:
        asked: list[str] = []

        def metadata(url: str) -> object:
            asked.append(url.partition("/")[2].rpartition("huggingface.co/")[2])
            if isinstance(outcome, BaseException):
                raise outcome
            return SimpleNamespace(size=size)

        def download(repo_id: str, filename: str) -> object:
            asked.append(f"{repo_id} {filename}")
            return outcome

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    return install


def hub_error(name: str, base: type[Exception] = Exception) -> BaseException:
    """Return an error of huggingface_hub, whose own constructors want the server's response."""
    cls = getattr(huggingface_hub.errors, name)
    error = cls.__new__(cls)
    assert isinstance(error, base)
    return error


class TestCache:
    """What is cached is used as it is."""

    def test_cached_model(self, home: Path, hub: Callable[..., list[str]]) -> None:
        """The network is not asked, and the spec is called what the user called it."""
        asked = hub(AssertionError("not to be called"))
        cached(home, json.dumps(CONFIG))
        spec = load_model(REPO)
        assert (spec.name, spec.num_layers) == (REPO, 3)
        assert asked == []

    def test_environment(self, tmp_path: Path) -> None:
        """HF_HOME and HF_HUB_OFFLINE are honoured, as everywhere in that ecosystem."""
        cached(tmp_path, json.dumps(CONFIG))
        code = (
            "import sys; from lorafa_prof.catalog import load_model; from lorafa_prof.errors import BadInputError;"
            "print(load_model(sys.argv[1]).num_layers)\n"
            "try: load_model('some-owner/other')\n"
            "except BadInputError as error: print(error)"
        )
        env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        env.pop("HF_HUB_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", code, REPO], check=True, capture_output=True, text=True, timeout=60, env=env
        )
        first, second = done.stdout.splitlines()
        assert first == "3"
        assert second.startswith(
            "some-owner/other: not in the catalog, and not in the Hugging Face cache while offline"
        )

    def test_bad_cached_file(self, home: Path) -> None:
        """The line names the file in the cache."""
        cached(home, "{")
        with pytest.raises(BadInputError, match=r"c0ffee.*config\.json: not valid JSON"):
            load_model(REPO)

    def test_known_not_to_exist(self, home: Path, hub: Callable[..., list[str]]) -> None:
        """The cache remembers that there was no config.json; while online the hub is asked again."""
        hub(hub_error("EntryNotFoundError"))
        folder = cached(home, "", file="other.json")
        (folder / ".no_exist" / "c0ffee").mkdir(parents=True)
        (folder / ".no_exist" / "c0ffee" / "config.json").touch()
        with pytest.raises(BadInputError, match=r"its repository has no config\.json"):
            load_model(REPO)


class TestDownload:
    """What is not cached is downloaded, unless that was forbidden."""

    def test_downloaded(self, home: Path, hub: Callable[..., list[str]]) -> None:
        """Only the configuration is asked for."""
        (home / "downloaded.json").write_text(json.dumps(CONFIG))
        asked = hub(str(home / "downloaded.json"))
        assert load_model(REPO).num_layers == 3
        assert asked == [f"{REPO}/resolve/main/config.json", f"{REPO} config.json"]

    def test_too_large(self, home: Path, hub: Callable[..., list[str]]) -> None:
        """A file that would be refused is not downloaded; of unknown size it is."""
        asked = hub("nowhere.json", size=10**10)
        with pytest.raises(BadInputError, match=r"config\.json of 10000000000 bytes is too large"):
            load_model(REPO)
        assert len(asked) == 1
        hub("nowhere.json", size=None)
        with pytest.raises(BadInputError, match=r"nowhere\.json: No such file"):
            load_model(REPO)

    @pytest.mark.parametrize(("offline", "setting"), [(True, False), (None, True)])
    def test_offline(
        self,
        home: Path,
        hub: Callable[..., list[str]],
        monkeypatch: pytest.MonkeyPatch,
        offline: bool | None,
        setting: bool,
    ) -> None:
        """Neither the caller's word nor the environment's is overruled."""
        asked = hub("")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", setting)
        with pytest.raises(BadInputError, match=r"while offline; go online .* or give the path of its config\.json"):
            load_model(REPO, offline=offline)
        assert asked == []
        assert os.listdir(home) == []

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (
                "GatedRepoError",
                BadInputError,
                "gated: accept its terms at https://huggingface.co/some-owner/some.model_1",
            ),
            ("RepositoryNotFoundError", BadInputError, "not in the catalog nor on the Hugging Face hub"),
            ("LocalEntryNotFoundError", LorafaProfError, "was not reached; check the network"),
            ("EntryNotFoundError", BadInputError, "its repository has no config.json"),
            ("OfflineModeIsEnabled", BadInputError, "HF_HUB_OFFLINE is set"),
            ("HFValidationError", BadInputError, "not a valid Hugging Face model id"),
        ],
    )
    def test_errors(
        self,
        home: Path,
        hub: Callable[..., list[str]],
        error: str,
        kind: type[LorafaProfError],
        message: str,
    ) -> None:
        """Each failure of the hub is one line that says what to do; a path always will."""
        hub(hub_error(error))
        with pytest.raises(LorafaProfError) as caught:
            load_model(REPO)
        assert type(caught.value) is kind
        assert str(caught.value).startswith(f"{REPO}: ")
        assert message in str(caught.value)
        assert str(caught.value).endswith("or give the path of its config.json")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("error", [ConnectionError("refused\nby peer"), RuntimeError("?"), OSError(28, "No space")])
    def test_other_errors(self, home: Path, hub: Callable[..., list[str]], error: Exception) -> None:
        """What the network stack throws besides does not escape, nor bring its own lines along."""
        hub(error)
        with pytest.raises(LorafaProfError, match=r"the Hugging Face hub could not be asked \(\w+\)") as caught:
            load_model(REPO)
        assert caught.value.__cause__ is error
        assert str(caught.value).isprintable()

    def test_interrupt(self, home: Path, hub: Callable[..., list[str]]) -> None:
        """Ctrl-C stays what it is."""
        hub(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            load_model(REPO)

    def test_without_network(self, home: Path) -> None:
        """The real client, kept from the network, ends in our own error too."""
        with pytest.raises(LorafaProfError, match=rf"^{REPO}: "):
            hub_config_path(REPO, offline=False)


def test_huggingface_hub_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message holds the install command; models of the catalog do without."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingComponentError, match="pip install huggingface_hub"):
        load_model(REPO)
    assert load_model("meta-llama/Llama-2-7b-hf").name == "llama2-7b"


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("owner/name", True),
        ("Qwen/Qwen2.5-7B", True),
        ("a/b/c", False),
        ("name", False),
        ("owner/", False),
        ("/name", False),
        ("../name", False),
        ("owner/..", False),
        ("owner/na me", False),
        ("owner/name\n", False),
        (f"owner/{'x' * 100}", False),
    ],
)
def test_form_of_an_id(name: str, is_id: bool) -> None:
    """Owner, one slash, name; nothing that walks through folders."""
    assert looks_like_hub_id(name) == is_id
    if not is_id:
        with pytest.raises((UnknownNameError, BadInputError)):
            load_model(name)
