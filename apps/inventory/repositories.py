"""The one repository of a tenant at a destination: made once, opened in leases, taken home as a recovery kit."""

from __future__ import annotations

import secrets

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from apps.errors import Invalid
from apps.iam import access as rights
from apps.iam import audit
from apps.iam.models import Tenant, User
from apps.iam.secrets import keep, reveal
from apps.inventory import stores
from apps.inventory.models import Destination, DestinationKind, Repository
from node_agent.protocol import RepositoryAccess


def ensure(tenant: Tenant, destination: Destination) -> Repository:
    """The repository's row, with a new sealed password when it is the first time. Two that ask at once get the
    same one. The repository itself is made by an init task."""
    if destination.tenant_id != tenant.pk:
        raise Invalid("The destination belongs to another tenant.", hint="Choose a destination of the same tenant.")
    found = _find(tenant, destination)
    if found:
        return found
    try:
        with transaction.atomic():
            password = keep(tenant, f"repository at {destination.name}", secrets.token_urlsafe(32))
            made = Repository.objects.create(tenant=tenant, destination=destination, password=password)
            audit.record("server", "repository.added", made)
            return made
    except IntegrityError:
        found = _find(tenant, destination)
        if found is None:
            raise
        return found


def access(repository: Repository) -> RepositoryAccess:
    """Address and password in clear: for the answer to a lease only, never for a row, a log or a message."""
    return RepositoryAccess(
        repository=repository.pk,
        url=repository.url,
        options=stores.told(repository.destination),
        password=reveal(repository.password),
        repository_id=repository.repository_id,
    )


def kit(user: User, repository: Repository) -> str:
    """The recovery kit as text: all that restores without BRS. Reading it is a right of its own, and audited."""
    rights.require(user, rights.Right.READ_KIT, repository)
    text = _KIT.format(
        tenant=repository.tenant.name,
        destination=repository.destination.name,
        url=repository.url,
        nodes=", ".join(node.hostname or node.name for node in repository.destination.nodes.all()) or "–",
        repository_id=repository.repository_id or "(not made yet)",
        password=reveal(repository.password),
        server=settings.BRS_PUBLIC_URL,
        credentials=_credentials(repository.destination),
        locked=_locked(repository),
        written=f"{timezone.now():%Y-%m-%d %H:%M} UTC",
    )
    audit.record(user, "repository.kit-read", repository)
    Repository.objects.filter(pk=repository.pk).update(kit_saved_at=timezone.now())
    return text


def _credentials(destination: Destination) -> str:
    """What opens the store, in restic's variables where it has them; nothing for a folder."""
    if destination.kind == DestinationKind.LOCAL:
        return ""
    told = dict(stores.told(destination))
    key_file = told.pop("service-account-key", None)
    lines = [f"    {_VARIABLES.get(name, name)}={value}" for name, value in sorted(told.items())]
    if key_file is not None:
        lines += [
            "    GOOGLE_APPLICATION_CREDENTIALS=google-key.json   (a file with the text that follows)",
            "",
            key_file,
        ]
    return "\nThe store itself opens with (variables of restic, else options of BRS):\n\n" + "\n".join(lines) + "\n"


def _locked(repository: Repository) -> str:
    """Of a store that locks objects: what reads beneath an attacker's deletes, and what restic can do there."""
    options = stores.told(repository.destination)
    if "object-lock" not in options:
        return ""
    return _LOCKED.format(url=repository.url, mode=options["object-lock"], days=options["object-lock-days"])


def _find(tenant: Tenant, destination: Destination) -> Repository | None:
    return Repository.objects.filter(tenant=tenant, destination=destination).first()


_VARIABLES = {
    "access-key-id": "AWS_ACCESS_KEY_ID",
    "secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "session-token": "AWS_SESSION_TOKEN",
    "region": "AWS_DEFAULT_REGION",
    "account-name": "AZURE_ACCOUNT_NAME",
    "account-key": "AZURE_ACCOUNT_KEY",
    "account-sas": "AZURE_ACCOUNT_SAS",
    "access-token": "GOOGLE_ACCESS_TOKEN",
    "user": "RESTIC_REST_USERNAME",
}

_LOCKED = """
What is stored there is locked for {days} days and cannot be deleted before ({mode}). restic reads it as above, with
these commands: snapshots, ls, find, check, restore, dump, mount. It does not know of the lock: do not use its forget,
prune, tag, rewrite, migrate or repair on this repository.

After somebody deleted or overwrote backups, restic sees what he left. BRS's command line reads what lies beneath, and
brings it back, also for restic:

    export RESTIC_REPOSITORY='{url}'       # password and credentials as above
    LOCK='--option object-lock={mode} --option object-lock-days={days}'
    python -m node_agent repo $LOCK snapshots
    python -m node_agent repo $LOCK restore latest --target /restored
    python -m node_agent repo $LOCK repair undelete
    restic check --read-data
"""

_KIT = """\
BRS RECOVERY KIT                                              keep this offline and safe

Whoever holds this page can read every backup in this repository. It restores them without BRS.

Tenant:         {tenant}
Destination:    {destination}
Address:        {url}
Nodes:          {nodes}
Repository id:  {repository_id}
Password:       {password}
Server:         {server}
Written:        {written}
{credentials}
The repository has restic's format, version 2. On any machine that reaches it, with restic 0.14 or newer:

    export RESTIC_REPOSITORY='{url}'
    export RESTIC_PASSWORD='{password}'
    restic snapshots                                  # what there is
    restic ls latest                                  # what is in the newest
    restic restore latest --target /restored          # everything of it
    restic restore SNAPSHOT --target /restored --include /path/in/it
    restic dump SNAPSHOT /disks/disk.raw > disk.raw   # a disk image
    restic check --read-data                          # is all of it readable?
{locked}
The same with BRS's own command line, which needs no server:

    python -m node_agent repo snapshots --repo '{url}'
    python -m node_agent repo restore latest --target /restored --repo '{url}'
"""
