"""What is removed from texts: secrets of the environment by name, and whatever has a secret's shape."""

from __future__ import annotations

import pytest

from autoresearch.base.redaction import redact

VARIABLES = {
    "GITHUB_TOKEN": "abcdefghij0123456789",
    "DB_PASSWORD": "correct horse battery",
    "CARD_PIN": "4711",
    "AWS_CREDENTIAL_FILE": "/home/me/credentials",
    "HTTPS_PROXY": "http://me:pr%40xypass@proxy:3128",
    "PWD": "/home/me/lab",
    "HOME": "/home/me",
    "SPIN_COUNT": "3000",
    "AUTHOR": "somebody else",
}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("the token is abcdefghij0123456789!", "the token is [GITHUB_TOKEN]!"),
        ("it says correct horse battery", "it says [DB_PASSWORD]"),
        ("CARD_PIN=4711", "CARD_PIN=[CARD_PIN]"),
        ("CARD_PIN: '4711'", "CARD_PIN: '[CARD_PIN]'"),
        ("HTTPS_PROXY=http://me:pr%40xypass@proxy:3128", "HTTPS_PROXY=http://[credentials]@proxy:3128"),
        ("the proxy wants pr@xypass", "the proxy wants [HTTPS_PROXY]"),
        ("git clone https://bob:hunter2@example.com/x", "git clone https://[credentials]@example.com/x"),
        ("ghp_" + "a1B2" * 9, "[token]"),
        ("key=sk-ant-api03-" + "x" * 30, "key=[token]"),
        ("AKIA" + "A1" * 8, "[token]"),
        ("hf_" + "q" * 34, "[token]"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb", "a\n[private key]\nb"),
    ],
)
def test_a_secret_is_replaced(text: str, cleaned: str) -> None:
    assert redact(text, VARIABLES) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "4711 steps, 3000 spins, by somebody else in /home/me/lab",
        "TOTAL_BATCH_SIZE = 4711",
        "x[a:b]@c and http://example.com:8000/a@b and model:8b@latest",
        "sk-learn, skip-layers, hf_hub, AKIA",
        "def token_embedding(key, query): return key @ query",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, VARIABLES) == text
