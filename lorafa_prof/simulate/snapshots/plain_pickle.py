"""Reading of the part of the pickle format that is plain data, from a file that nobody vouches for.

A pickle is a program for a small stack machine, and the standard library's machine can import and call things. This
one knows the opcodes of dict, list, tuple, text, bytes, numbers, booleans and None (Python's Lib/pickletools.py
describes each) and no others: there is nothing in it that could call anything. All that it reads is bounded by the
bytes that are there, never by a length that the file claims.

Text opcodes of protocol 0, sets and extensions are refused as well: a memory snapshot has none, whether
`torch.cuda.memory._dump_snapshot` wrote it (protocol 4, or 5 from Python 3.14 on) or PyTorch's C++ did (protocol 2).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lorafa_prof.errors import BadInputError

#: Containers inside each other: a snapshot has six, and seven with annotations.
DEEPEST_NESTING = 32
#: Containers, fillings of dicts, marks, texts and remembered objects together. Each takes some 100 bytes of memory,
#: though the file may spend as little as one byte on it. An event takes about seven, so this is millions of events.
MOST_OBJECTS = 2**25
#: Opcodes in all: a minute or two of reading.
MOST_OPCODES = 2**28
#: Bytes of an integer; addresses have eight.
LONGEST_INTEGER = 16
#: Opcodes between two looks at the limits.
_ROUND = 2**16
_PROTO, _STOP = 0x80, 0x2E
_NEWEST_PROTOCOL = 5


def read_plain(data: bytes, where: str = "pickle") -> Any:
    """Return the object that the pickle `data` describes, made of plain data only.

    Objects that the pickle refers to several times are shared in what is returned, as in any pickle: what walks it
    must do so by structure or by identity.

    Args:
        data: the file's bytes.
        where: begins every error message; a path, for example.

    Raises:
        BadInputError: not a pickle, truncated, too large, nested too deeply or in itself, or anything in it that is
            not plain data; the text names what was found.
    """
    try:
        value = _Reader(data).run()
        _check_nesting(value)
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from None
    return value


class _Reader:
    """The stack machine. Handlers of opcodes are the functions below."""

    __slots__ = ("data", "made", "memo", "outer", "position", "stack")

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        #: Stacks that wait beneath a mark.
        self.outer: list[list[Any]] = []
        #: A dict, not a list: a file may name any index.
        self.memo: dict[int, Any] = {}
        #: Objects made so far, of those that MOST_OBJECTS limits.
        self.made = 0

    def run(self) -> Any:
        if self.data[:1] != bytes([_PROTO]) or self.data[1:2] > bytes([_NEWEST_PROTOCOL]) or len(self.data) < 3:
            raise BadInputError(f"not a pickle of protocol 2 to {_NEWEST_PROTOCOL}")
        self.position = 2
        try:
            self._run_to_the_end()
        except struct.error:
            raise BadInputError(self._truncated()) from None
        except IndexError:
            inside = self.position < len(self.data)
            raise BadInputError(self._empty() if inside else self._truncated()) from None
        except KeyError as error:
            raise BadInputError(f"damaged: object {error} was never stored (byte {self.position})") from None
        if not self.stack:
            raise BadInputError(self._empty())
        return self.stack.pop()

    def _run_to_the_end(self) -> None:
        for _ in range(MOST_OPCODES // _ROUND):
            if self._round():
                return
            if self.made > MOST_OBJECTS:
                raise BadInputError(f"more than {MOST_OBJECTS} objects")
        raise BadInputError(f"more than {MOST_OPCODES} opcodes")

    def _truncated(self) -> str:
        return f"truncated: it ends at byte {len(self.data)}, before its end mark"

    def _empty(self) -> str:
        return f"damaged: nothing on the stack at byte {self.position}"

    def _round(self) -> bool:
        """Run some opcodes and return whether the end mark was among them."""
        data, handlers = self.data, _HANDLERS
        for _ in range(_ROUND):
            opcode = data[self.position]
            self.position += 1
            if opcode == _STOP:
                return True
            handlers[opcode](self)
        return False

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        start = self.position
        end = start + size
        if end > len(self.data):
            raise BadInputError(
                f"truncated: {size} bytes announced at byte {start}, {len(self.data) - start} are there"
            )
        self.position = end
        return self.data[start:end]

    def since_mark(self) -> list[Any]:
        """Return what was put on the stack since the last mark, and go back to before it."""
        if not self.outer:
            raise BadInputError(f"damaged: no mark at byte {self.position}")
        items = self.stack
        self.stack = self.outer.pop()
        return items


Handler = Callable[[_Reader], None]


def _refuse(reader: _Reader) -> None:
    """Raise for an opcode that is not plain data, by the name that people know it by."""
    start = reader.position - 1
    name = next((opcode.name for opcode in pickletools.opcodes if ord(opcode.code) == reader.data[start]), "")
    if not name:
        raise BadInputError(f"damaged: byte {start} is no opcode")
    raise BadInputError(f"not plain data: {name}{_named(reader, name)} at byte {start}; nothing was run")


def _named(reader: _Reader, opcode: str) -> str:
    """Return what the opcode would import, if it says so."""
    if opcode in ("GLOBAL", "INST"):
        lines = reader.data[reader.position : reader.position + 160].split(b"\n")[:2]
        names = [line.decode("utf-8", "replace") for line in lines]
    elif opcode == "STACK_GLOBAL":
        names = [name for name in reader.stack[-2:] if isinstance(name, str)]
    else:
        return ""
    text = ".".join(names)[:120]
    return f" of {text!r}"


def _constant(value: object) -> Handler:
    def push(reader: _Reader) -> None:
        reader.stack.append(value)

    return push


def _new(kind: Callable[[], object]) -> Handler:
    def push(reader: _Reader) -> None:
        reader.made += 1
        reader.stack.append(kind())

    return push


def _number(form: str) -> Handler:
    one = struct.Struct(form)

    def push(reader: _Reader) -> None:
        reader.stack.append(one.unpack_from(reader.data, reader.position)[0])
        reader.position += one.size

    return push


def _small_number(reader: _Reader) -> None:
    reader.stack.append(reader.data[reader.position])
    reader.position += 1


def _long(length_bytes: int) -> Handler:
    def push(reader: _Reader) -> None:
        size = int.from_bytes(reader.take(length_bytes), "little")
        if size > LONGEST_INTEGER:
            raise BadInputError(f"an integer of {size} bytes at byte {reader.position}")
        reader.stack.append(int.from_bytes(reader.take(size), "little", signed=True))

    return push


def _text(length_bytes: int) -> Handler:
    def push(reader: _Reader) -> None:
        size = int.from_bytes(reader.take(length_bytes), "little")
        reader.made += 1
        # Lone surrogates, which Python has in names of files that are not UTF-8, are replaced: they cannot be printed.
        reader.stack.append(reader.take(size).decode("utf-8", "replace"))

    return push


def _bytes(length_bytes: int) -> Handler:
    def push(reader: _Reader) -> None:
        size = int.from_bytes(reader.take(length_bytes), "little")
        reader.made += 1
        reader.stack.append(reader.take(size))

    return push


def _tuple(size: int) -> Handler:
    def push(reader: _Reader) -> None:
        if len(reader.stack) < size:
            raise IndexError
        reader.made += 1
        reader.stack[-size:] = [tuple(reader.stack[-size:])]

    return push


def _memoize(reader: _Reader) -> None:
    reader.made += 1
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _remember(length_bytes: int) -> Handler:
    def put(reader: _Reader) -> None:
        index = int.from_bytes(reader.take(length_bytes), "little")
        reader.made += 1
        reader.memo[index] = reader.stack[-1]

    return put


def _recall(reader: _Reader) -> None:
    reader.stack.append(reader.memo[reader.data[reader.position]])
    reader.position += 1


def _recall_far(reader: _Reader) -> None:
    reader.stack.append(reader.memo[int.from_bytes(reader.take(4), "little")])


def _mark(reader: _Reader) -> None:
    reader.made += 1
    reader.outer.append(reader.stack)
    reader.stack = []


def _frame(reader: _Reader) -> None:
    size = int.from_bytes(reader.take(8), "little")
    if size > len(reader.data) - reader.position:
        raise BadInputError(f"truncated: a frame of {size} bytes, {len(reader.data) - reader.position} are there")


def _append(reader: _Reader) -> None:
    item = reader.stack.pop()
    _top(reader, list).append(item)


def _extend(reader: _Reader) -> None:
    items = reader.since_mark()
    _top(reader, list).extend(items)


def _list_since_mark(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.stack.append(items)


def _tuple_since_mark(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.stack.append(tuple(items))


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    _fill(reader, _top(reader, dict), [key, value])


def _set_items(reader: _Reader) -> None:
    items = reader.since_mark()
    _fill(reader, _top(reader, dict), items)


def _dict_since_mark(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.stack.append({})
    _fill(reader, reader.stack[-1], items)


def _top(reader: _Reader, kind: type[Any]) -> Any:
    top = reader.stack[-1]
    if type(top) is not kind:
        raise BadInputError(f"damaged: a {type(top).__name__} where a {kind.__name__} must be (byte {reader.position})")
    return top


def _fill(reader: _Reader, target: dict[str, Any], items: list[Any]) -> None:
    reader.made += 1  # the first key trebles what a dict takes
    keys = items[::2]
    for key in keys:
        # Text only, as in every snapshot: numbers can be chosen so that they collide, and filling takes for ever.
        if type(key) is not str:
            raise BadInputError(f"a dict has a key that is no text but {type(key).__name__}")
    if len(items) % 2:
        raise BadInputError("damaged: a dict has a key without a value")
    target.update(zip(keys, items[1::2], strict=True))


_BY_NAME: dict[str, Handler] = {
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_DICT": _new(dict),
    "EMPTY_LIST": _new(list),
    "BININT": _number("<i"),
    "BININT1": _small_number,
    "BININT2": _number("<H"),
    "BINFLOAT": _number(">d"),
    "LONG1": _long(1),
    "LONG4": _long(4),
    "SHORT_BINUNICODE": _text(1),
    "BINUNICODE": _text(4),
    "BINUNICODE8": _text(8),
    "SHORT_BINBYTES": _bytes(1),
    "BINBYTES": _bytes(4),
    "BINBYTES8": _bytes(8),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _tuple_since_mark,
    "LIST": _list_since_mark,
    "DICT": _dict_since_mark,
    "APPEND": _append,
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "MARK": _mark,
    "MEMOIZE": _memoize,
    "BINPUT": _remember(1),
    "LONG_BINPUT": _remember(4),
    "BINGET": _recall,
    "LONG_BINGET": _recall_far,
    "FRAME": _frame,
}
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_HANDLERS: list[Handler] = [_refuse] * 256
for _name, _handler in _BY_NAME.items():
    _HANDLERS[_CODES[_name]] = _handler

_CONTAINERS = frozenset({dict, list, tuple})


def _check_nesting(root: object) -> None:
    """Raise BadInputError if containers are nested in themselves or deeper than DEEPEST_NESTING.

    Every container is looked into once, however often it is referred to, and without recursion.
    """
    heights: dict[int, int] = {}
    path: list[tuple[int, Iterator[Any]]] = []
    below = [0]  # beside each of `path`, and one for the root's: the height of the highest container inside
    pending: Iterator[Any] = iter((root,))
    open_now: set[int] = set()
    while True:
        child = next((c for c in pending if type(c) in _CONTAINERS), None)
        if child is None:
            if not path:
                return
            key, pending = path.pop()
            open_now.discard(key)
            height = heights[key] = below.pop() + 1
            below[-1] = max(below[-1], height)
        elif id(child) in heights:
            below[-1] = max(below[-1], heights[id(child)])
        elif id(child) in open_now:
            raise BadInputError("a container that contains itself")
        else:
            open_now.add(id(child))
            path.append((id(child), pending))
            below.append(0)
            pending = iter(_children(child))
        if len(path) + below[-1] > DEEPEST_NESTING:
            raise BadInputError(f"nested deeper than {DEEPEST_NESTING} containers")


def _children(container: Any) -> Iterable[Any]:
    return container.values() if type(container) is dict else container
