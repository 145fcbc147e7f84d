"""The tokenizer that counts prompts and turns them into ids: any Hugging Face directory or hub id.

Importable on a GPU host. A directory's tokenizer.json is read by the tokenizers library alone, in a fraction of the
seconds that importing transformers takes; transformers is imported for hub ids, and where tokenizer_config.json adds
tokens that tokenizer.json lacks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gst_assets.errors import WorkloadError
from gst_assets.input_files import InputKind, JsonProblem, open_input, parse_json, read_text
from gst_assets.provenance import sha256_file
from gst_assets.scenario import resolve_path

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_KIND = InputKind(
    WorkloadError,
    "no such file.",
    "a file of a tokenizer",
    "Fetch the file again, or correct model.tokenizer.",
    most_bytes=256 << 20,
)
_SLICES_PER_WORKER = 8
_T = TypeVar("_T")


class Tokenizer:
    """A loaded tokenizer with the digest of the file that defines it. `backend` is a `tokenizers.Tokenizer` that
    neither cuts nor pads."""

    def __init__(self, reference: str, sha256: str, backend: Any) -> None:
        self.reference = reference
        self.sha256 = sha256
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without added special tokens: what the engine is given is exactly what is counted."""
        return self._each(texts, lambda encoding: encoding.ids, None)

    def count(self, texts: Sequence[str], *, workers: int | None = None) -> list[int]:
        """Number of tokens of each text. `workers`: threads that encode; 1: the calling one alone; None: one for each
        CPU this process may use."""
        return self._each(texts, len, workers)

    def largest_id(self) -> int:
        """The largest token id that a text can have, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def vocabulary(self) -> list[str]:
        """The vocabulary's entries as the tokenizer spells them, by ascending id, without added tokens."""
        ids = self._backend.get_vocab(with_added_tokens=False)
        return sorted(ids, key=ids.__getitem__)

    def _each(self, texts: Sequence[str], keep: Callable[[Any], _T], workers: int | None) -> list[_T]:
        """`keep` of each text's encoding, in order. An encoding takes many times the memory of its text, so no two of a
        thread live at once."""

        def encoded(part: Sequence[str]) -> list[_T]:
            # One text a call, without the unused offsets, in threads of our own (it releases the interpreter
            # lock). In the library's batch call each of its lasting threads caches the words it saw first: after a scan
            # of the vocabulary it took twice the processor time.
            try:
                return [keep(self._backend.encode_batch_fast([text], add_special_tokens=False)[0]) for text in part]
            # the library raises nothing more precise, such as for a vocabulary without its own unknown token
            except Exception as error:
                raise WorkloadError(
                    f"model.tokenizer {self.reference!r}: cannot encode a text ({' '.join(str(error).split()):.200})."
                    " Fetch its files again, or name another."
                ) from None

        threads = min(workers or len(os.sched_getaffinity(0)), len(texts))
        if threads <= 1:
            return encoded(texts)
        with ThreadPoolExecutor(threads) as pool:
            return [one for part in pool.map(encoded, _slices(texts, threads * _SLICES_PER_WORKER)) for one in part]


def _slices(texts: Sequence[str], number: int) -> Iterator[Sequence[str]]:
    size = -(-len(texts) // number)
    return (texts[begin : begin + size] for begin in range(0, len(texts), size))


def load_tokenizer(reference: str) -> Tokenizer:
    """Load a tokenizer from a directory (absolute, or relative as `locations.locate` says) or, failing that, a hub id.

    Raises:
        WorkloadError: no such directory and not loadable from the hub, or a directory without tokenizer.json.
    """
    directory = resolve_path(reference)
    if directory.is_dir():
        if not (directory / _FILE).is_file():
            raise WorkloadError(
                f"{directory}: no {_FILE}. model.tokenizer needs a Hugging Face tokenizer directory with a fast"
                " tokenizer."
            )
        return Tokenizer(reference, sha256_file(directory / _FILE), _of_directory(directory, reference))
    if directory.is_absolute() and (reference.startswith((".", "/", "~", "data/")) or reference.count("/") > 1):
        raise WorkloadError(
            f"{directory}: tokenizer directory missing. Correct model.tokenizer, or name a hub id such as"
            " Qwen/Qwen3-0.6B."
        )
    backend = _load(reference, reference)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference, _FILE)
    if not isinstance(cached, str):
        raise WorkloadError(
            f"model.tokenizer {reference}: the hub repository has no {_FILE}. A fast tokenizer is required."
        )
    return Tokenizer(reference, sha256_file(Path(cached)), backend)


def _of_directory(directory: Path, reference: str) -> Any:
    """What tokenizer.json describes, or with tokens added by tokenizer_config.json what transformers makes of both."""
    from tokenizers import Tokenizer as Backend

    config = _config(directory / _CONFIG)
    if "auto_map" in config:
        raise _wants_own_code(reference)
    open_input(directory / _FILE, _KIND).close()
    try:
        backend = Backend.from_file(str(directory / _FILE))
    except Exception as error:  # the library raises nothing more precise
        raise WorkloadError(
            f"{directory / _FILE}: not readable as a tokenizer ({' '.join(str(error).split()):.200}). "
            "Fetch the file again, or correct model.tokenizer."
        ) from None
    if any(backend.token_to_id(token) is None for token in _added_tokens(config)):
        return _load(str(directory), reference)
    return _whole_texts(backend)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path, _KIND)) if path.exists() else {}
    except JsonProblem as problem:
        raise WorkloadError(f"{path}: not readable as JSON ({problem.reason}). {_KIND.remedy}") from None
    if not isinstance(found, dict):
        raise WorkloadError(f"{path}: expected a JSON object, found {type(found).__name__}. Fetch the file again.")
    return found


def _added_tokens(config: Mapping[str, Any]) -> set[str]:
    """Tokens that transformers would add to a tokenizer of this configuration."""
    listed = config.get("added_tokens_decoder")
    tokens = list(listed.values()) if isinstance(listed, dict) else []
    special = config.get("additional_special_tokens")
    tokens += special if isinstance(special, list) else []
    tokens += [value for name, value in config.items() if name.endswith("_token")]
    texts = [one.get("content") if isinstance(one, dict) else one for one in tokens]
    return {text for text in texts if isinstance(text, str)}


def _wants_own_code(reference: str) -> WorkloadError:
    return WorkloadError(
        f"model.tokenizer {reference!r}: requires code of its own to run, which is never done. Name a tokenizer that "
        "tokenizer.json describes alone, or remove auto_map and tokenizer_class from its tokenizer_config.json."
    )


def _load(location: str, reference: str) -> Any:
    from transformers import AutoTokenizer

    try:
        # False, and not left out: else the library asks on the terminal whether to run the repository's own code.
        loaded = AutoTokenizer.from_pretrained(location, use_fast=True, trust_remote_code=False)
        backend = loaded.backend_tokenizer
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "custom code" in reason:
            raise _wants_own_code(reference) from None
        raise WorkloadError(
            f"model.tokenizer {reference!r}: neither a directory nor loadable from the hub ({reason:.200}). "
            "Name a Hugging Face tokenizer directory; data/tokenizer/qwen3 ships with the project."
        ) from None
    return _whole_texts(backend)


def _whole_texts(backend: Any) -> Any:
    """tokenizer.json may ask for both, and either would change what is counted."""
    backend.no_truncation()
    backend.no_padding()
    return backend
