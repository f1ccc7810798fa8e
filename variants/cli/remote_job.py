"""A job that a gateway's builder does, seen from here."""

from __future__ import annotations

from typing import Any

import click

from variants.cli.remote import Remote
from variants.progress import reporter


def run_job(gateway: Remote, path: str, body: dict[str, Any]) -> None:
    """Asks a gateway for a job, shows how far it is, and says what came of it.

    Raises:
        ClickException: The gateway refuses it, or it did not succeed.
    """
    queued = job = gateway.post(path, body)
    task = f"{job['kind']} {job['model']}"
    with reporter() as progress:
        for _, job in gateway.events(f"/admin/jobs/{queued['id']}/events"):
            progress.update(task, job["phrase"], job["fraction"])
        progress.finish(task, job["state"])
    if job["state"] == "failed":
        raise click.ClickException(f"the job {job['id']} failed: {job['error']}")
    if job["state"] != "succeeded":
        raise click.ClickException(f"the job {job['id']} is {job['state']}. Ask for it again.")
    result = job["result"] or {}
    for variant in result.get("variants", [result["variant"]] if "variant" in result else []):
        click.echo(f"{job['model']}/{variant}")
