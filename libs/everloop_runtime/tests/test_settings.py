"""Settings: from the environment, or a clear end."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from everloop_runtime.settings import ServiceSettings


class Settings(ServiceSettings):
    data_dir: Path = Path("data")
    database_url: str = "sqlite:///x.db"
    grpc_address: str = "127.0.0.1:1"
    metrics_address: str = "127.0.0.1:2"
    batch_rows: int = Field(default=10, ge=1)


def test_the_environment_wins_over_the_default(monkeypatch):
    monkeypatch.setenv("EVERLOOP_BATCH_ROWS", "25")
    monkeypatch.setenv("EVERLOOP_KAFKA_BOOTSTRAP", "kafka:9092")
    settings = Settings.load()
    assert (settings.batch_rows, settings.kafka_bootstrap) == (25, "kafka:9092")


@pytest.mark.parametrize("value", ["0", "many", ""])
def test_a_broken_variable_is_named_and_ends_the_process(monkeypatch, capsys, value):
    monkeypatch.setenv("EVERLOOP_BATCH_ROWS", value)
    monkeypatch.setenv("EVERLOOP_DRAIN_SECONDS", "-1")
    with pytest.raises(SystemExit) as caught:
        Settings.load()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "EVERLOOP_BATCH_ROWS: " in said
    assert "EVERLOOP_DRAIN_SECONDS: " in said


@pytest.mark.parametrize("value", ["kafka", "kafka:", ":9092", "kafka:ninety", "a:1,b", "a:70000"])
def test_an_address_has_host_and_port(monkeypatch, capsys, value):
    monkeypatch.setenv("EVERLOOP_KAFKA_BOOTSTRAP", value)
    monkeypatch.setenv("EVERLOOP_GRPC_ADDRESS", "localhost")
    with pytest.raises(SystemExit):
        Settings.load()
    said = capsys.readouterr().err
    assert "EVERLOOP_KAFKA_BOOTSTRAP: " in said
    assert "EVERLOOP_GRPC_ADDRESS: Value error, must be host:port" in said


def test_several_bootstrap_servers_are_taken(monkeypatch):
    monkeypatch.setenv("EVERLOOP_KAFKA_BOOTSTRAP", "a:9092, b:9092,[::1]:9092")
    assert Settings.load().kafka_bootstrap == "a:9092, b:9092,[::1]:9092"


def test_a_missing_variable_is_named(capsys):
    with pytest.raises(SystemExit):
        ServiceSettings.load()
    assert "EVERLOOP_DATABASE_URL: Field required" in capsys.readouterr().err


def test_settings_do_not_change_and_hide_their_secrets():
    settings = Settings(s3_secret_key=SecretStr("hunter2"))
    with pytest.raises(ValidationError):
        settings.batch_rows = 3  # type: ignore[misc]  # what is tested
    assert "hunter2" not in repr(settings)
