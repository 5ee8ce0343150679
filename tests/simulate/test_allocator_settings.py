"""Settings of the caching allocator: what is read, what is refused, and that PyTorch's own parser agrees."""

from __future__ import annotations

import pytest

from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import BadInputError, LorafaProfError, UnknownNameError, UnsupportedError
from lorafa_prof.units import MIB

parse = AllocatorSettings.parse

ACCEPTED = [
    ("", AllocatorSettings()),
    ("expandable_segments:True", AllocatorSettings(expandable_segments=True)),
    (
        " expandable_segments : True , max_split_size_mb : 128 ,",
        AllocatorSettings(expandable_segments=True, max_split_size_mb=128),
    ),
    ("max_split_size_mb:20", AllocatorSettings(max_split_size_mb=20)),
    ("max_split_size_mb:30,max_split_size_mb:40", AllocatorSettings(max_split_size_mb=40)),
    ("max_non_split_rounding_mb:64", AllocatorSettings(max_non_split_rounding_mb=64)),
    ("garbage_collection_threshold:0.8", AllocatorSettings(garbage_collection_threshold=0.8)),
    ("large_segment_size_mb:40,max_split_size_mb:41",
     AllocatorSettings(large_segment_size_mb=40, max_split_size_mb=41)),
    # The order does not matter: PyTorch, too, reads large_segment_size_mb first.
    ("max_split_size_mb:12,large_segment_size_mb:12",
     AllocatorSettings(large_segment_size_mb=12, max_split_size_mb=12)),
    ("roundup_power2_divisions:4", AllocatorSettings(roundup_power2_divisions=(4,) * 16)),
    # 256 MiB is 2^8: interval 8. Below the first boundary its own value holds, above the last one that of ">".
    (
        "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
        AllocatorSettings(roundup_power2_divisions=(*(1,) * 8, 1, 2, 4, *(8,) * 5)),
    ),
    # Between two boundaries that are not neighbours nothing is rounded; a boundary beyond 32 GiB is the last interval.
    (
        "roundup_power2_divisions:[2:2,16:0,131072:8]",
        AllocatorSettings(roundup_power2_divisions=(2, 2, *(0,) * 13, 8)),
    ),
    ("roundup_power2_divisions:[>:8]", AllocatorSettings(roundup_power2_divisions=(0, *(8,) * 15))),
    ("pinned_use_background_threads:True", AllocatorSettings()),
]  # fmt: skip

#: What only the CUDA build's parser knows.
ACCEPTED_FOR_CUDA = [
    ("per_process_memory_fraction:0.5", AllocatorSettings(per_process_memory_fraction=0.5)),
    ("backend:native,expandable_segments:False", AllocatorSettings()),
    ("throw_on_cudamalloc_oom:False", AllocatorSettings()),
    ("pinned_num_register_threads:8,pinned_use_cuda_host_register:True", AllocatorSettings()),
    ("release_lock_on_cudamalloc:True,graph_capture_record_stream_reuse:True", AllocatorSettings()),
]

REFUSED = [
    ("max_split_size_mb:19", "max_split_size_mb must be at least 20"),
    ("max_non_split_rounding_mb:5", "max_non_split_rounding_mb must be at least 20"),
    ("large_segment_size_mb:40,max_split_size_mb:39", "max_split_size_mb must be at least 40"),
    ("large_segment_size_mb:10", "large_segment_size_mb must be more than 10"),
    ("garbage_collection_threshold:0", "garbage_collection_threshold must be between 0 and 1"),
    ("garbage_collection_threshold:1.0", "garbage_collection_threshold must be between 0 and 1"),
    ("garbage_collection_threshold:high", "garbage_collection_threshold must be a number"),
    ("max_split_size_mb:many", "max_split_size_mb must be a whole number, not 'many'"),
    ("expandable_segments:true", "expandable_segments must be True or False, not 'true'"),
    ("roundup_power2_divisions:0", "roundup_power2_divisions must be a power of two, not 0"),
    ("roundup_power2_divisions:6", "roundup_power2_divisions must be a power of two, not 6"),
    ("roundup_power2_divisions:[256:3]", "must be powers of two or 0, not 3"),
    ("roundup_power2_divisions:[100:4]", "a boundary must be a power of two, not 100"),
]

#: Refused here, where PyTorch reads on and takes something.
REFUSED_HERE = [
    ("max_split_size_mb", "not an allocator setting: 'max_split_size_mb'"),
    ("max_split_size_mb=128", "not an allocator setting: 'max_split_size_mb=128'"),
    ("max_split_size_mb:128MB", "must be a whole number, not '128MB'"),
    ("max_split_size_mb:-1", "must be a whole number, not '-1'"),
    (",expandable_segments:True", "not an allocator setting"),
    ("expandable_segments:True,,max_split_size_mb:20", "not an allocator setting"),
    ("roundup_power2_divisions:[256:1", "lacks its closing bracket"),
    ("roundup_power2_divisions:[256]", "not an interval: '256'"),
    ("expandable_segments:True,large_segment_size_mb:21", "must be even with expandable_segments"),
    ("per_process_memory_fraction:1.5", r"per_process_memory_fraction must be in \[0, 1\]"),
    ("pinned_num_register_threads:3", "pinned_num_register_threads must be a power of two"),
]


@pytest.mark.parametrize(("text", "settings"), [*ACCEPTED, *ACCEPTED_FOR_CUDA])
def test_settings_are_read(text: str, settings: AllocatorSettings) -> None:
    """As PyTorch reads them, down to the interval of each number of divisions."""
    read = parse(text)
    assert read.divisions == settings.divisions
    assert (read.max_split_size, read.max_non_split_rounding, read.large_segment_size) == (
        settings.max_split_size, settings.max_non_split_rounding, settings.large_segment_size,
    )  # fmt: skip
    assert read.expandable_segments == settings.expandable_segments
    assert read.garbage_collection_threshold == settings.garbage_collection_threshold
    assert read.per_process_memory_fraction == settings.per_process_memory_fraction


@pytest.mark.parametrize(("text", "message"), [*REFUSED, *REFUSED_HERE])
def test_bad_settings_are_refused_by_name(text: str, message: str) -> None:
    """The error names the setting and what it may be, in one line."""
    with pytest.raises(BadInputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_answered_with_the_nearest_one() -> None:
    """A slip of the pen is found."""
    with pytest.raises(
        UnknownNameError, match="unknown allocator setting 'max_split_size'; did you mean max_split_size_mb"
    ):
        parse("max_split_size:128")


@pytest.mark.parametrize("text", ["backend:cudaMallocAsync", "throw_on_cudamalloc_oom:True"])
def test_what_is_not_modelled_is_said(text: str) -> None:
    """Another allocator, or another policy, would have other figures."""
    with pytest.raises(UnsupportedError, match="is not modelled"):
        parse(text)


def test_the_same_limits_hold_for_settings_made_in_code() -> None:
    """Values are checked when they are made, wherever they come from."""
    with pytest.raises(BadInputError, match="max_split_size_mb must be at least 20"):
        AllocatorSettings(max_split_size_mb=1)
    with pytest.raises(BadInputError, match="takes one number or 16, not 2"):
        AllocatorSettings(roundup_power2_divisions=(1, 2))
    with pytest.raises(BadInputError, match="powers of two or 0, not -4"):
        AllocatorSettings(roundup_power2_divisions=-4)


def test_defaults_follow_the_large_segment() -> None:
    """A block too large to be split may be one large segment larger than the request, unless said otherwise."""
    assert AllocatorSettings().max_split_size is None
    assert AllocatorSettings().max_non_split_rounding == 20 * MIB
    assert AllocatorSettings(large_segment_size_mb=32).max_non_split_rounding == 32 * MIB


@pytest.mark.parametrize("text", [text for text, _ in ACCEPTED] + [text for text, _ in REFUSED])
def test_pytorch_agrees(text: str) -> None:
    """The installed PyTorch accepts and refuses the same; its CPU build has all of the parser but CUDA's own keys."""
    torch = pytest.importorskip("torch")
    theirs = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if theirs is None or torch.version.cuda or torch.version.hip:
        pytest.skip("this PyTorch has no such parser, or it would change the settings of an allocator in use")
    try:
        parse(text)
        ours = True
    except LorafaProfError:
        ours = False
    try:
        # A setting of its own comes first, since PyTorch keeps large_segment_size_mb from one call to the next.
        theirs("large_segment_size_mb:20," + text)
        accepted = True
    except (RuntimeError, ValueError):
        accepted = False
    finally:
        theirs("large_segment_size_mb:20")
    assert accepted is ours
