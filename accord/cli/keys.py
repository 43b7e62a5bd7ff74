"""`accord keys ...`: the key that signs verdicts and promotions, and whose signatures count."""

import json
from dataclasses import asdict

import click

from accord.cli.shared import AS_JSON, Group
from accord.terminal import say


@click.group(cls=Group, short_help="Show your signing key, and say whose signatures count.")
def keys() -> None:
    """Show your key, which signs verdicts and promotions, and say whose signatures count.

    Two people, two keys. Who trains: the verdict is signed by the key of the machine that evaluates, without being
    asked. Who reviews: trusts that key (`accord keys trust`), reads the report, and runs `accord promote` with another
    key, on another account or machine. promoted.json then names both, and `accord runs verify` checks all of it. With
    one key for both, one person can train a model and let it through.
    """


@keys.command(short_help="Show your public key, and those that you trust.")
@AS_JSON
def show(as_json: bool) -> None:
    """Show your public key, for others to trust, and the keys that you trust; makes your key if there is none."""
    from eval.verdict.signing import key_path, public_key, signing_key, trusted_keys

    own = public_key(signing_key().public_key())
    others = [each for each in trusted_keys() if each.public_key != own.public_key]
    if as_json:
        found = {"public_key": own.public_key, "fingerprint": own.fingerprint, "file": str(key_path())}
        say(json.dumps(found | {"trusted": [asdict(each) for each in others]}, indent=2))
        return
    say(f"your key:    {own.public_key}\nfingerprint: {own.fingerprint}\nfile:        {key_path()}")
    say("signs:       verdicts of evaluations that run here, and promotions that you make")
    for each in others:
        say(f"trusted:     {each.fingerprint} {each.comment}".rstrip())
    if not others:
        say(
            "trusted:     nobody else; who reviews what others train trusts their keys (`accord keys --help`)"
        )


@keys.command(short_help="Trust someone's public key.")
@click.argument("file_or_key")
def trust(file_or_key: str) -> None:
    """Trust someone's public key, given in quotes or in a file; compare its fingerprint with the owner's first."""
    from eval.verdict.signing import trust as add

    new = add(file_or_key)
    for each in new:
        say(f"trusted: {each.fingerprint} {each.comment}".rstrip())
    if not new:
        say("trusted already")
