"""`mipgate compare` up to where it starts the load generator; the rest runs against a real service."""

import importlib.util

import pytest
from click.testing import CliRunner

from tests.loadtests.stub import stub_gateway
from variants.cli.main import main


def compare(*arguments, **environment):
    return CliRunner().invoke(main, ["compare", *arguments], env=environment)


def test_without_a_gateway_it_says_how_to_start_one():
    done = compare("digits", MIPGATE_URL="http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "no gateway answers at http://127.0.0.1:9; start one with `mipgate serve`" in done.output


def test_the_option_goes_before_the_environment():
    done = compare("digits", "--url", "http://127.0.0.1:7", MIPGATE_URL="http://127.0.0.1:9")
    assert "no gateway answers at http://127.0.0.1:7" in done.output


def test_another_server_is_no_gateway():
    with stub_gateway(do_GET=lambda request: request._send({}, 404)) as url:
        done = compare("digits", "--url", url)
    assert done.exit_code == 1
    assert "is no gateway (status 404)" in done.output


@pytest.mark.parametrize("missing", ["locust", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    done = compare("digits")
    assert done.exit_code == 1
    assert f"{missing} is not installed. Run `pip install 'mipgate[loadtest]'`." in done.output


@pytest.mark.parametrize("options", [("--seconds", "0"), ("--users", "0"), ("--seconds", "soon")])
def test_a_wrong_call_ends_with_2(options):
    assert compare("digits", *options).exit_code == 2
