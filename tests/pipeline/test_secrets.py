"""A tracking address's password: in the memory of the command, and nowhere else."""

import logging
import os
import re
import stat

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.layout import Output
from pipeline.secrecy import PUBLIC_NAMES, environment_words, has_secret, mask, public
from pipeline.tracking.destination import Destination
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import assert_whole, begin, leave
from tests.pipeline.secret_samples import SECRET, USER_AND_SECRET, assert_no_secret
from tests.pipeline.sweep_samples import EXTRA, experiment, write_snapshot


@pytest.mark.parametrize(
    ("uri", "masked", "shown", "words"),
    [
        ("http://h:5000/x", "http://h:5000/x", "http://h:5000/x", []),
        ("http://me:word@h:5", "http://me:***@h:5", "http://h:5", ["me", "***"]),
        ("https://me:p@s:s@h/x", "https://me:***@h/x", "https://h/x", ["me", "***"]),
        ("http://me:pa/ss@h:5", "http://me:***@h:5", "http://h:5", ["me", "***"]),
        ("http://m%40x:p%40ss@h", "http://m%40x:***@h", "http://h", ["m%40x", "***"]),
        ("postgresql+psycopg://me:word@h/x", *["postgresql+psycopg://me:***@h/x"] * 2, []),
        ("postgresql://h/x?user=me&password=word", *["postgresql://h/x?user=me&password=***"] * 2, []),
        ("sqlite:////a/b.db", "sqlite:////a/b.db", "sqlite:////a/b.db", []),
        ("s3://b/x?region=eu&endpoint_override=h:9", *["s3://b/x?region=eu&endpoint_override=h:9"] * 2, []),
        ("https://h/x?client_secret=word&a=b", *["https://h/x?client_secret=***&a=***"] * 2, []),
        ("https://h/x?sv=2024&sig=a%2Bb%3D", *["https://h/x?sv=***&sig=***"] * 2, []),
        ("https://h/x#access_token=word&state=1", *["https://h/x#access_token=***&state=***"] * 2, []),
        ("https://h/x?API_KEY=word", *["https://h/x?API_KEY=***"] * 2, []),
        ("mssql://h/x?odbc_connect=UID%3Dme%3BPWD%3Dword", *["mssql://h/x?odbc_connect=***"] * 2, []),
        ("mssql://h/x;UID=me;PWD={wo;rd}", *["mssql://h/x;UID=***;PWD=***"] * 2, []),
    ],
)
def test_addresses_are_shown_without_their_password(uri, masked, shown, words):
    assert mask(uri) == mask(uri, uri) == masked
    assert public(uri) == shown
    assert [word.partition("=")[2] for word in environment_words(uri)] == words


def test_a_password_is_found_in_any_text():
    uri = "http://me:p%40ssw@h"
    assert mask("refused p@ssw, p%40ssw and http://me:p%40ssw@h/x", uri) == "refused ***, *** and http://me:***@h/x"
    assert mask("a postgresql://u:p@h/db b") == "a postgresql://u:***@h/db b"
    uri = "abfs://c@a/x?sas=sv%3D1%26sig%3Dabc%252Bdef"
    assert "abc" not in mask("refused sv=1&sig=abc%2Bdef, sas sv%3D1%26sig%3Dabc%252Bdef", uri)
    uri = "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhidden%3B"
    assert "hidden" not in mask("Login failed (DRIVER=x;PWD=hidden;), hidden", uri)


def test_any_value_of_a_query_is_masked_but_those_that_are_known_to_be_public():
    """Whatever the parameter is called that the next kind of store keeps its key in."""
    names = [
        "X-Amz-Signature",
        "sig",
        "se",
        "api_key",
        "apikey",
        "key",
        "auth",
        "jwt",
        "code",
        "passphrase",
        "anything",
    ]
    for name in names:
        for form in (f"http://h/a?{name}=word", f"http://h/a?x=1&{name}=word#f", f"gs://b?region=x&{name}=word"):
            assert "word" not in mask(form), form
            assert has_secret(form)
    for name in sorted(PUBLIC_NAMES):
        assert mask(f"s3://b/x?{name}=word") == f"s3://b/x?{name}=word"
        assert not has_secret(f"s3://b/x?{name}=word")
        assert not re.search("pass|pwd|secret|token|sig|cred|(?<!order)(?<!metric_)(?<!share)(?<!by)key", name), name


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Login failed; UID=me; PWD=hidden; Server=h", "Login failed; UID=me; PWD=***; Server=h"),
        ('{"password": "hidden", "a": 1}', None),
        ("aws_secret_access_key=hidden and", "aws_secret_access_key=*** and"),
        ("AccountKey=abc+/==;EndpointSuffix=x", None),
        ("Set MLFLOW_TRACKING_TOKEN or RAY_AUTH_TOKEN.", "Set MLFLOW_TRACKING_TOKEN or RAY_AUTH_TOKEN."),
        ("refuses the token: is it this cluster's?", "refuses the token: is it this cluster's?"),
        ("at /api/jobs/?max_results=10 (page 2)", "at /api/jobs/?max_results=10 (page 2)"),
        ("MLFLOW_TRACKING_PASSWORD=*** tiny-onn sync", "MLFLOW_TRACKING_PASSWORD=*** tiny-onn sync"),
        ("tokens=512, key=3", "tokens=512, key=3"),
    ],
)
def test_sentences_stay_and_secrets_in_them_do_not(said, shown):
    masked = mask(said)
    assert masked == (shown or masked)
    assert "hidden" not in masked
    assert "abc" not in masked


def test_no_file_table_log_or_line_has_it(tmp_path, proxy, store, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    output = Output(tmp_path)
    uri = proxy.uri.replace("://", f"://{USER_AND_SECRET}@")
    pairs = begin(output, "secret", Destination(uri, "secret"), arms=("per_token", "task_only"), seeds=(0,))
    told = []
    tracker = Tracker(uri, "secret", None, later=True)
    told.append(str(tracker.problem))
    (trial, folder), (other, second) = pairs
    leave(trial, folder, "FINISHED")
    write_snapshot(folder, 0)
    leave(other, second, "FAILED")
    for fault in ("pass", "error", "lose", "stall", "down"):
        proxy.be(fault)
        tracker._server.end_pause()
        tracker.start_summary(output.sweep("secret"), experiment("secret"))
        tracker.start_trial(folder, trial, "secret", EXTRA)
        told.append(str(tracker.problem))
    told += map(str, tracker.close("KILLED", wait_s=0).values())
    assert "***" in " ".join(told) or proxy.uri.removeprefix("http://") in " ".join(told)
    refused = CliRunner().invoke(main, ["sync", "secret", "--output", str(tmp_path), "--tracking-uri", uri])
    assert refused.exit_code == 2
    nothing_given = CliRunner().invoke(main, ["sync", "secret", "--output", str(tmp_path)])
    assert "which is not kept" in nothing_given.output
    proxy.be("pass")
    done = CliRunner().invoke(main, ["sync", "secret", "--output", str(tmp_path), "--tracking-uri", uri])
    assert done.exit_code == 0, done.output
    assert_whole(store, trial, folder, "FINISHED")
    texts = (*told, refused.output, nothing_given.output, done.output, caplog.text, *capfd.readouterr())
    assert assert_no_secret(tmp_path, store.root, texts=texts) > 20
    with pytest.raises(AssertionError):  # the search itself finds what is there
        assert_no_secret(tmp_path, texts=(f"x{SECRET}x",))


def test_what_we_write_is_writable_by_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        output = Output(tmp_path / "out")
        pairs = begin(output, "modes", Destination(), arms=("task_only",), seeds=(0,))
        leave(*pairs[0], "FINISHED")
        assert CliRunner().invoke(main, ["sync", "--output", str(output.root)]).exit_code == 0
    finally:
        os.umask(before)
    paths = list(output.root.rglob("*"))
    assert len(paths) > 10
    assert [path for path in paths if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []
