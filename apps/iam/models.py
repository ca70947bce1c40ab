"""People, tenants, what they may do, and what is kept secret for them.

Membership of a tenant with a role is the rule of rights; guardian's object grants are the exception.
Every model of the apps that belongs to somebody names the way to its tenant in ``tenant_path``
(a lookup such as ``job__tenant``); ``iam.access`` reads it and is the only place that decides. The other
declarations that it reads (``grant_path``, ``owner_path``, ``change_needs`` …) are explained there.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _


class User(AbstractUser):
    """A person. Custom from the first migration, so that it can grow."""

    tenant_path: ClassVar[str] = "memberships__tenant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    time_zone = models.CharField(_("time zone"), max_length=64, default="UTC")

    class Meta:
        verbose_name = _("user")
        verbose_name_plural = _("users")


class Tenant(models.Model):
    """Whose things they are: data, keys and deduplication of two tenants never meet."""

    tenant_path: ClassVar[str] = "id"  # the tenant itself
    change_needs: ClassVar[str] = "members"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(_("name"), max_length=100)
    slug = models.SlugField(_("short name"), max_length=50, unique=True)
    is_active = models.BooleanField(_("active"), default=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")
        ordering = ["name"]
        constraints = [models.UniqueConstraint(Lower("name"), name="tenant_name_unique")]

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    """What a member may do; the rights of each are listed in ``iam.access``."""

    VIEWER = "viewer", _("Viewer: sees everything of the tenant")
    OPERATOR = "operator", _("Operator: starts backups and restores to a new place")
    ADMIN = "admin", _("Administrator: also configures, restores in place and deletes")
    OWNER = "owner", _("Owner: also manages members and recovery kits")


class Membership(models.Model):
    tenant_path: ClassVar[str] = "tenant"
    change_needs: ClassVar[str] = "members"  # or an administrator could make himself an owner

    user = models.ForeignKey(User, models.CASCADE, related_name="memberships", verbose_name=_("user"))
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="memberships", verbose_name=_("tenant"))
    role = models.CharField(_("role"), max_length=20, choices=Role.choices, default=Role.VIEWER)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints = [models.UniqueConstraint(fields=["user", "tenant"], name="membership_unique")]

    def __str__(self) -> str:
        return f"{self.user} – {self.tenant} ({self.get_role_display()})"


class ApiToken(models.Model):
    """A key for programs. Only its SHA-256 is kept; it acts as its user, who alone sees it."""

    tenant_path: ClassVar[str] = "user__memberships__tenant"
    owner_path: ClassVar[str] = "user"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, models.CASCADE, related_name="api_tokens", verbose_name=_("user"))
    name = models.CharField(_("name"), max_length=100)
    prefix = models.CharField(_("begins with"), max_length=12, editable=False)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("API token")
        verbose_name_plural = _("API tokens")
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class Secret(models.Model):
    """Something sealed with the server's key (see ``iam.secrets``). Never shown, never logged."""

    tenant_path: ClassVar[str] = "tenant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, null=True, related_name="secrets", verbose_name=_("tenant"))
    name = models.CharField(_("name"), max_length=200)
    sealed = models.BinaryField(editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("secret")
        verbose_name_plural = _("secrets")

    def __str__(self) -> str:
        return self.name


class AuditEvent(models.Model):
    """One line of the audit trail: who did what to which object, and how it was before and after.

    Written by ``iam.audit`` only, never changed. ``chain`` links the events in batches (a chore fills it).
    """

    tenant_path: ClassVar[str] = "tenant"

    at = models.DateTimeField(_("time"), auto_now_add=True, db_index=True)
    tenant = models.ForeignKey(
        Tenant, models.SET_NULL, null=True, related_name="audit_events", verbose_name=_("tenant")
    )
    actor = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+", verbose_name=_("user"))
    actor_name = models.CharField(_("by"), max_length=200)  # survives the user; also "node x", "schedule"
    verb = models.CharField(_("action"), max_length=60, db_index=True)  # "restore.requested", "policy.changed"
    object_type = models.CharField(_("kind of object"), max_length=60, blank=True)  # "inventory.node"
    object_id = models.CharField(max_length=64, blank=True)
    object_name = models.CharField(_("object"), max_length=300, blank=True)
    detail = models.JSONField(_("detail"), default=dict)
    remote_addr = models.CharField(_("address"), max_length=64, blank=True)
    chain = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        verbose_name = _("audit event")
        verbose_name_plural = _("audit events")
        ordering = ["-id"]
        indexes = [models.Index(fields=["object_type", "object_id"], name="audit_object")]

    def __str__(self) -> str:
        return f"{self.actor_name}: {self.verb} {self.object_name}"


class Attempts(models.Model):
    """How often something that may be guessed was tried, by address; ``iam.throttle`` counts here, so that it
    holds for all processes together."""

    tenant_path: ClassVar[str] = ""  # the system's own

    key = models.CharField(max_length=200, primary_key=True)
    count = models.PositiveIntegerField(default=0)
    until = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("attempts")
        verbose_name_plural = _("attempts")

    def __str__(self) -> str:
        return self.key
