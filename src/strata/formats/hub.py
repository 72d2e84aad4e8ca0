"""Pushing a folder to the Hugging Face Hub, and what can go wrong with that, in one sentence each."""

from pathlib import Path

from strata.errors import UserError

_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."


def require_login() -> None:
    """That there is a token, before anything is written for the Hub.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"`push_to_hub` needs a Hugging Face account. There is no token on this machine. {_LOG_IN}")


def push(folder: Path, repository: str, *, private: bool) -> None:
    """Upload a folder to a model repository, which is created if missing.

    Args:
        folder: all of it is uploaded.
        repository: "org/name".
        private: of a repository that is created; one that exists stays as it is.

    Raises:
        UserError: not logged in, not allowed, or no network. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="SAEs written by Strata")
    except Exception as error:  # of several libraries, by version of huggingface_hub
        raise UserError(f"{_explained(error, repository)} {folder} is complete: try again with overwrite.") from error


def _explained(error: Exception, repository: str) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return f"`push_to_hub` needs a Hugging Face account. The token on this machine was refused. {_LOG_IN}"
    if status == 403:
        return f"`push_to_hub` must name a repository that you may write. {repository} is refused to this token."
    if status is not None:
        return f"The Hugging Face Hub must take the push to {repository}. It answered {status}: {error}."
    return f"`push_to_hub` needs the network. The Hugging Face Hub cannot be reached ({type(error).__name__}: {error})."
