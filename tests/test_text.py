"""Sources of texts: what each kind gives, how it splits, what identifies it, and the sentence when it is broken."""

import functools
import gzip
import json
import sys

import numpy as np
import pytest
import torch

from strata.errors import MissingExtraError, UserError
from strata.lm import corpus, text_files, text_sources
from strata.lm.corpus import is_held_out
from strata.lm.text import open_texts

DOCUMENTS = [f"document number {i}: Über 日本\nsecond line" for i in range(200)]


def read(source, **options) -> list[str]:
    return list(open_texts(source, split=options.pop("split", "all"), **options))


def write_json_lines(path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


class ChatTokenizer:
    chat_template = "has one"

    def apply_chat_template(self, messages, *, tokenize):
        assert tokenize is False
        if messages[0]["role"] == "unknown":
            raise KeyError("no such role")
        return "".join(f"<|{message['role']}|>{message['content']}" for message in messages)


CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
WRITTEN_OUT = "<|user|>Hi<|assistant|>Hello"


@pytest.fixture(params=["list", "tuple", "jsonl", "jsonl.gz", "json", "json of lines", "parquet", "folder", "datasets"])
def any_source(request, tmp_path):
    """The same documents from every kind of source that can be read again."""
    records = [{"id": i, "text": text} for i, text in enumerate(DOCUMENTS)]
    kind, path = request.param, tmp_path / f"data.{request.param.split()[0]}"
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](DOCUMENTS)
    if kind == "jsonl.gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    if kind in ("jsonl", "json of lines"):
        write_json_lines(path, records)
    if kind == "json":
        path.write_text(json.dumps(records), encoding="utf-8")
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=64)
    if kind == "datasets":
        return pytest.importorskip("datasets").Dataset.from_list(records)
    if kind == "folder":
        for i, text in enumerate(DOCUMENTS):
            (tmp_path / f"{i:03}.txt").write_text(text, encoding="utf-8")
        (tmp_path / "notes.md").write_text("not a text file")
        (tmp_path / ".hidden.txt").write_text("nobody sees me")
        return tmp_path
    return path


def test_every_source_gives_all_documents_in_order_again_and_again(any_source):
    texts = open_texts(any_source, split="all")
    assert list(texts) == DOCUMENTS
    assert list(texts) == DOCUMENTS


def test_the_splits_of_every_source_share_no_document_and_lose_none(any_source):
    held_out, train = read(any_source, split="held_out"), read(any_source, split="train")
    assert held_out == [text for text in DOCUMENTS if is_held_out(text)]
    assert train == [text for text in DOCUMENTS if not is_held_out(text)]
    assert 0 < len(held_out) < 30


def test_every_source_describes_itself_as_json(any_source):
    texts = open_texts(any_source)
    described = texts.describe()
    assert described == json.loads(json.dumps(described))
    assert described == open_texts(any_source).describe()
    assert described["split"] == "train"
    assert described["fingerprint"].split(":")[0] in ("sha256", "datasets")


def test_an_iterator_can_be_read_once():
    texts = open_texts(iter(DOCUMENTS), split="all")
    assert list(texts) == DOCUMENTS
    with pytest.raises(UserError, match="read only once"):
        list(texts)
    assert texts.describe()["fingerprint"] == "unknown"


def test_generators_are_read_no_further_than_needed():
    def endless():
        while True:
            yield "text"

    documents = iter(open_texts(endless(), split="all"))
    assert [next(documents), next(documents)] == ["text", "text"]


def test_other_iterables_of_texts_can_be_read_again():
    texts = open_texts(dict(enumerate(DOCUMENTS)).values(), split="all")
    assert list(texts) == list(texts) == DOCUMENTS
    assert read(np.array(DOCUMENTS)) == DOCUMENTS


def test_texts_pass_through():
    texts = open_texts(DOCUMENTS, split="held_out")
    assert open_texts(texts) is texts


def test_the_standard_library_splits_as_the_embedded_model_was_trained(monkeypatch):
    files = functools.cache(corpus.standard_library_files)  # walking through the folders takes its time
    monkeypatch.setattr(corpus, "standard_library_files", files)
    monkeypatch.setattr(text_sources, "standard_library_files", files)
    held_out = list(corpus.standard_library_texts(held_out=True))
    texts = open_texts("stdlib", split="held_out")
    assert list(texts) == held_out
    assert texts.describe()["fingerprint"].startswith(f"python-{sys.version_info[0]}.{sys.version_info[1]}.")
    assert next(iter(open_texts("stdlib"))) == next(corpus.standard_library_texts(held_out=False))
    assert read("stdlib")[-len(held_out) :] == held_out


def test_a_long_text_file_is_several_documents_that_joined_are_the_file(tmp_path):
    paragraphs = "".join(f"Paragraph {i} has some words.\n\n" for i in range(20_000))
    (tmp_path / "long.txt").write_text(paragraphs)
    pieces = read(tmp_path / "long.txt")
    assert "".join(pieces) == paragraphs
    assert max(len(piece) for piece in pieces) <= text_files.PIECE_CHARACTERS
    assert min(len(piece) for piece in pieces[:-1]) >= text_files.PIECE_CHARACTERS // 2
    assert all(piece.endswith("\n\n") for piece in pieces)


@pytest.mark.parametrize("content", ["x" * 200_000, "word " * 40_000, "line\n" * 40_000])
def test_long_text_files_without_blank_lines_are_cut_too(tmp_path, content):
    (tmp_path / "long.txt").write_text(content)
    pieces = read(tmp_path / "long.txt")
    assert "".join(pieces) == content
    assert len(pieces) > 2


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "marked.txt").write_text("text", encoding="utf-8-sig")
    assert read(tmp_path / "marked.txt") == ["text"]


def test_half_surrogate_pairs_are_replaced(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert read(tmp_path / "data.jsonl") == ["a\ufffdb", "😀"]


def test_the_fingerprint_of_files_follows_content_and_not_place(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").write_text("some text")
    here, there = (open_texts(tmp_path / folder / "data.txt").fingerprint for folder in ("here", "there"))
    assert here == there
    (tmp_path / "there" / "data.txt").write_text("some test")
    assert open_texts(tmp_path / "there" / "data.txt").fingerprint != here


def test_large_files_are_identified_by_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_WHOLE_HASH_BYTES", 100)
    monkeypatch.setattr(text_files, "_END_HASH_BYTES", 10)
    fingerprints = set()
    for content in ("a" * 200, "b" + "a" * 199, "a" * 199 + "b", "a" * 201):
        (tmp_path / "data.txt").write_text(content)
        fingerprints.add(open_texts(tmp_path / "data.txt").fingerprint)
    assert len(fingerprints) == 4
    assert all(fingerprint.startswith("sha256-ends:") for fingerprint in fingerprints)


def test_the_fingerprint_of_a_list_knows_where_texts_end():
    assert open_texts(["ab", "c"]).fingerprint != open_texts(["a", "bc"]).fingerprint


def test_the_text_column_is_the_one_named(tmp_path):
    write_json_lines(tmp_path / "data.jsonl", [{"text": "no", "body": "yes"}, {"body": None}, {"body": "too"}])
    assert read(tmp_path / "data.jsonl", text_column="body") == ["yes", "too"]


def test_conversations_are_written_out_with_the_chat_template(tmp_path):
    write_json_lines(tmp_path / "data.jsonl", [{"messages": CONVERSATION}, {"turns": CONVERSATION}])
    source = open_texts(tmp_path / "data.jsonl", split="all", tokenizer=ChatTokenizer())
    assert next(iter(source)) == WRITTEN_OUT
    assert read([CONVERSATION, "plain"], tokenizer=ChatTokenizer()) == [WRITTEN_OUT, "plain"]
    assert read([{"turns": CONVERSATION}], tokenizer=ChatTokenizer(), text_column="turns") == [WRITTEN_OUT]


def test_conversations_in_parquet_are_written_out(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist([{"id": 1, "messages": CONVERSATION}]), tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet", tokenizer=ChatTokenizer()) == [WRITTEN_OUT]


def test_conversations_without_a_template_are_errors():
    with pytest.raises(UserError, match="text number 0 is one; give `tokenizer`"):
        read([CONVERSATION])
    without = ChatTokenizer()
    without.chat_template = None
    with pytest.raises(UserError, match="this tokenizer has none"):
        read([CONVERSATION], tokenizer=without)
    with pytest.raises(UserError, match="refuses the conversation at text number 0: 'no such role'"):
        read([[{"role": "unknown", "content": ""}]], tokenizer=ChatTokenizer())


def test_datasets_streams_and_their_splits():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS, "other": range(len(DOCUMENTS))})
    stream = open_texts(rows.to_iterable_dataset(), split="all")
    assert list(stream) == list(stream) == DOCUMENTS
    assert read(datasets.DatasetDict(train=rows, test=rows.select([0]))) == DOCUMENTS
    with pytest.raises(UserError, match=r"must have one named 'train'.*\['a', 'b'\]"):
        read(datasets.DatasetDict(a=rows, b=rows))
    with pytest.raises(UserError, match="no 'body' or 'messages'; its columns are: 'text', 'other'"):
        read(rows, text_column="body")


def test_hub_datasets_are_streamed_from_their_train_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    class Builder:
        hash = "c0ffee"
        config = type("Config", (), {"name": "small"})

        def as_streaming_dataset(self):
            rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
            return datasets.IterableDatasetDict(train=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args: asked.append(args) or Builder())
    texts = open_texts("some-org/some.data:small", split="all")
    assert list(texts) == DOCUMENTS
    assert asked == [("some-org/some.data", "small")]
    assert texts.describe() == {
        "source": "some-org/some.data",
        "kind": "hub",
        "split": "all",
        "fingerprint": "hub:some-org/some.data:small:c0ffee",
    }


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args):
        raise ConnectionError("Couldn't reach the hub\nwith many\nlines")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(UserError, match=r"'org/name' could not be opened: Couldn't reach the hub\. Check the id"):
        open_texts("org/name")


def test_missing_libraries_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"`datasets`.*strata-sae\[data\]"):
        open_texts("org/name")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"`pyarrow`.*strata-sae\[data\]"):
        read(tmp_path / "data.parquet")


def test_token_ids_are_kept_and_split_by_sequence():
    ids = torch.randint(0, 1000, (300, 6), dtype=torch.int32)
    texts = open_texts(ids, split="all")
    assert texts.token_ids is not None
    assert torch.equal(texts.token_ids, ids.long())
    held_out, train = (open_texts(ids.numpy(), split=split).token_ids for split in ("held_out", "train"))
    assert sorted([*held_out.tolist(), *train.tolist()]) == sorted(ids.tolist())
    assert 0 < len(held_out) < 40
    with pytest.raises(UserError, match="cannot be read as text"):
        list(texts)


BROKEN_FILES = {
    "empty file": ("a.txt", b"", r"must hold some text.*a\.txt.*is empty"),
    "blank file": ("a.txt", b" \n\n ", r"must hold some text. 'a\.txt' holds none"),
    "not UTF-8": ("a.txt", b"caf\xe9 au lait", r"must be UTF-8.*a\.txt.*byte 0xe9"),
    "broken line": ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"must be JSON.*a\.jsonl' line 2 is not"),
    "broken json": ("a.json", b'[\n{"text": 1,]', r"a\.json' must be JSON. Line 2"),
    "not UTF-8 lines": ("a.jsonl", b'{"text": "\xff"}', r"must be UTF-8"),
    "missing column": ("a.jsonl", b'{"body": "x", "id": 3}', r"line 1 has no 'text' or 'messages'.*'body', 'id'\."),
    "number": ("a.jsonl", b'{"text": 3}', r"line 1 is of type int"),
    "blank json": ("a.json", b" ", r"must hold some text"),
    "not gzip": ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz' could not be read: Not a gzipped file"),
    "cut gzip": ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], r"a\.txt\.gz' could not be read"),
    "unknown kind": ("a.pdf", b"x", r"must end in one of \.txt, \.jsonl, \.json, \.parquet, .*\.gz.*a\.pdf"),
    "no parquet": ("a.parquet", b"PAR1 no more than this", r"a\.parquet' could not be read as Parquet"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files_are_one_sentence(case, tmp_path):
    name, content, message = BROKEN_FILES[case]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_parquet_column_is_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "data.parquet")
    with pytest.raises(UserError, match="has no 'text' or 'messages'; its columns are: 'body', 'id'"):
        read(tmp_path / "data.parquet")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.jsonl", "must be a file or folder that exists"),
        ("folder/missing.txt", "must be a file or folder that exists"),
        ("This is a text.\nIt has two lines.", r"a text itself is given in a list: \[text\]"),
        ("x" * 5000, "must be a file or folder that exists"),
        ([], "A list of texts must hold some text. Got an empty one"),
        ([" ", ""], "'list of 2' holds none"),
        (["text", 3], "text number 1 is of type int"),
        ([[1, 2], [3, 4]], "text number 0 is of type list; token ids are given as one integer Tensor"),
        ({"text": ["a"]}, "Got dict"),
        (b"bytes", "Got bytes"),
        (None, "Got NoneType"),
        (torch.zeros(3, 4), r"must be an integer Tensor \[n_seqs seq\].*float32 \[3, 4\]"),
        (torch.zeros(3, dtype=torch.long), r"Got torch.int64 \[3\]"),
        (torch.tensor([[1, -100]]), "must be 0 or above. Got -100"),
    ],
)
def test_what_is_no_source_is_one_sentence(source, message):
    with pytest.raises(UserError, match=message):
        read(source)


def test_a_folder_without_texts_and_an_unknown_split_are_errors(tmp_path):
    with pytest.raises(UserError, match="must hold files of a known kind"):
        open_texts(tmp_path)
    with pytest.raises(
        UserError, match=r"must be one of train, held_out, all\. Got 'heldout'\. Did you mean 'held_out'"
    ):
        open_texts(["a"], split="heldout")


def test_a_small_source_may_have_nothing_held_out():
    assert read(["one text"], split="held_out") + read(["one text"], split="train") == ["one text"]
