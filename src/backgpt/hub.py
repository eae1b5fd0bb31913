"""Models on the Hugging Face hub: `owner/name` downloaded as a model folder, and pushed as one.

Only the files that a model folder has are taken, so nothing that runs when it is opened. The
library `huggingface_hub` does the work: where files are kept, which hub is asked, whether it may be
asked at all, and who asks, is set as for every program that uses it (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN or `hf auth login`).
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from backgpt import __version__
from backgpt.errors import BackgptError, DataError, UsageError, needs_extra
from backgpt.manifest import MANIFEST, files_in, fingerprint
from backgpt.model_folder import CONFIG, README, card_of, folder_of, read_model

FILES = (
    *(CONFIG, "generation_config.json", "model*.safetensors*", "tokenizer*.json"),
    *("chat_template*", "card.json", MANIFEST, README),
)
"""Patterns of the files of a model folder; the optimizer of a checkpoint is not among them."""
FILES_FOR_OTHERS = ("onnx/*.onnx*",)
"""Patterns of files that are pushed with them, and that this program has no use for."""

NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\S+))?", re.ASCII)
MOST_CHARACTERS = 300  # of what the library says
LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"


def is_name(model: str) -> bool:
    """Return whether `model` may be `owner/name` or `owner/name@revision`, and no path from here.

    Where the first part is a folder it is a path, so that one with a typo is not asked for.
    """
    return bool(NAME.fullmatch(model)) and not Path(model.split("/")[0]).is_dir()


def download(name: str) -> Path:
    """Return the model folder `owner/name`, or `owner/name@revision`, downloading what is missing.

    Raises DataError if there is none, BackgptError if the hub refuses or is out of reach and the
    folder is not in the cache, MissingExtraError without the library.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise DataError(f"{name!r} is no name of a model: write owner/name or owner/name@revision")
    repository, revision = found["repository"], found["revision"]
    with _told(name, f"there is no folder {name} here, and it cannot be downloaded"):
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(FILES),
                ignore_patterns="*/*",
                library_name="backgpt",
                library_version=__version__,
            )
        )
    if not (folder / CONFIG).is_file():
        raise DataError(f"{name} on the hub is no model that backgpt reads: it has no {CONFIG}")
    return folder


def push(
    path: Path,
    name: str,
    *,
    private: bool = False,
    branch: str | None = None,
    message: str | None = None,
) -> str:
    """Upload the model at `path` as `owner/name`, in one commit; return its address.

    `path` is as in `read_model`, which must be able to read it. The repository is made if it is not
    there, and so is the `branch`; files of an earlier model there that this one does not have are
    removed. Raises UsageError for what cannot be pushed, BackgptError if the hub refuses, DataError
    and CorruptFileError as `read_model`, MissingExtraError without the library.
    """
    found = NAME.fullmatch(name)
    if found is None or found["revision"]:
        raise UsageError(f"{name!r} is no name of a repository: write owner/name")
    folder = folder_of(path)
    contents = _contents(folder, name)
    with _told(name, f"cannot push to {name}"):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

        if get_token() is None:
            raise UsageError(f"only who is known to the hub can push: {LOG_IN}")
        api = HfApi(library_name="backgpt", library_version=__version__)
        api.create_repo(name, private=private or None, exist_ok=True)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        there = api.model_info(name, revision=branch)
        if private and not there.private:
            raise UsageError(
                f"{name} is there already and not private: change that in its settings on the hub, "
                "or choose another name"
            )
        stale = [
            file.rfilename
            for file in there.siblings or ()
            if file.rfilename not in contents and _is_ours(file.rfilename)
        ]
        api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, data) for file, data in contents.items()),
                *(CommitOperationDelete(file) for file in stale),
            ],
            commit_message=message or "Upload a backgpt model",
            revision=branch,
        )
        return f"{api.endpoint}/{name}" + (f"/tree/{branch}" if branch else "")


def _contents(folder: Path, name: str) -> dict[str, str | bytes]:
    """Return what to upload: by file name the path of the file, or what is to be in it.

    The manifest is written anew, of what is downloaded again: without the card, which people may
    edit on the hub.
    """
    model = read_model(folder, dequantize=False)
    found = {file.relative_to(folder).as_posix(): file for file in files_in(folder)}
    files = {
        name: file
        for name, file in found.items()
        if _is_ours(name) and name not in (README, MANIFEST)
    }
    manifest = {
        "files": {name: fingerprint(file) for name, file in files.items() if _matches(name, FILES)}
    }
    if (folder / README).is_file():
        card = (folder / README).read_text(encoding="utf-8")
    else:
        card = card_of(model)
    card = card.replace("--model PATH", f"--model {name}").replace('"PATH"', f'"{name}"')
    return {
        **{name: str(file) for name, file in files.items()},
        MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode(),
        README: card.encode(),
    }


def _is_ours(file: str) -> bool:
    return _matches(file, FILES + FILES_FOR_OTHERS)


def _matches(file: str, patterns: Iterable[str]) -> bool:
    """Return whether a file is one of `patterns`, whose `*` does not stand for a `/` here."""
    alike = (one for one in patterns if one.count("/") == file.count("/"))
    return any(fnmatch(file, pattern) for pattern in alike)


@contextmanager
def _told(name: str, failed: str) -> Iterator[None]:
    """Tell what the library of the hub raises as an error of ours, in one line."""
    with needs_extra("hub", f"{failed}: the Hugging Face hub"):
        from huggingface_hub import constants, errors
    hub = constants.ENDPOINT
    try:
        with _progress_where_it_is_seen():
            yield
    except BackgptError:
        raise
    except errors.GatedRepoError:
        raise BackgptError(
            f"{failed}: it is gated; ask for access at {hub}/{name.split('@')[0]}, and {LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{failed}: {hub} has no such revision of it; leave it out") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{failed}: {hub} has none of that name, or it is private; check the name, or {LOG_IN}"
        ) from None
    except errors.HFValidationError as error:
        raise DataError(f"{failed}: {_line(error)}") from None
    except errors.OfflineModeIsEnabled:
        raise BackgptError(f"{failed}: HF_HUB_OFFLINE is set; unset it") from None
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set and it is not in the cache; unset that once"
        else:
            reason = f"{hub} is out of reach; try again later ({_line(error.__cause__ or error)})"
        raise BackgptError(f"{failed}: {reason}") from None
    except errors.HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        hint = f"{LOG_IN}, with the right to do this" if refused else "try again later"
        raise BackgptError(f"{failed}: {hint} ({_line(error)})") from None
    except Exception as error:  # of its HTTP client, whichever that is, or of the disk
        raise BackgptError(f"{failed}: {_line(error)}; try again") from None


@contextmanager
def _progress_where_it_is_seen() -> Iterator[None]:
    """Turn the library's progress bars off unless standard error is a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    is_set = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    if is_set or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _line(error: BaseException) -> str:
    """Return what an error says, in one line, shortened."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}…"
