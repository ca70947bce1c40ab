"""The restore wizard: what → which point → what of it → where to → confirm → watch.

Its memory is a ``RestoreDraft`` of the user, so that the back button, a reload and a link work. Only the last step
changes anything: it calls ``jobs.requests.restore``, which checks the rights again.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.sites import UnfoldAdminSite

from apps.catalog import browse
from apps.catalog.models import CopyState, PointCopy, RestorePoint
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_scope import address
from apps.inventory.models import Workload
from apps.jobs import estimate, machine_form, requests, restore_search
from apps.jobs.machine_form import MachineTargetForm
from apps.jobs.models import OPEN, Download, Job, JobKind, RestoreDraft, State
from apps.jobs.restore_form import TargetForm, default_target, summary
from apps.reports import timeline

STEPS = (
    ("what", gettext_lazy("What")),
    ("point", gettext_lazy("Which point")),
    ("files", gettext_lazy("What of it")),
    ("target", gettext_lazy("Where to")),
    ("confirm", gettext_lazy("Confirm")),
)
FOUND_MAX = 200


def urls(site: UnfoldAdminSite) -> list[URLPattern]:
    wizard = Wizard(site)

    def page(route: str, view: Any, name: str) -> URLPattern:
        return path(route, site.admin_view(view), name=name)

    return [
        page("restore/", wizard.what, "restore"),
        page("restore/new/", wizard.new, "restore_new"),
        page("restore/<uuid:draft>/point/", wizard.point, "restore_point"),
        page("restore/<uuid:draft>/files/", wizard.files, "restore_files"),
        page("restore/<uuid:draft>/tree/", wizard.tree, "restore_tree"),
        page("restore/<uuid:draft>/list/", wizard.read_list, "restore_list"),
        page("restore/<uuid:draft>/download/", wizard.download_one, "restore_download"),
        page("restore/<uuid:draft>/target/", wizard.target, "restore_target"),
        page("restore/<uuid:draft>/confirm/", wizard.confirm, "restore_confirm"),
        page("download/<uuid:download>/", wizard.download, "download"),
    ]


def usable_copy(point: RestorePoint) -> PointCopy | None:
    return point.copies.filter(state=CopyState.PRESENT).order_by("created_at").first()


def _disks(draft: RestoreDraft, copy: PointCopy | None) -> list[dict[str, Any]]:
    """The disks of a machine's point; without a list of its files, those that the machine has now."""
    found = browse.listing(copy, "/disks") if copy else None
    if found is not None:
        return [
            {"path": item.path, "name": item.name.removesuffix(".raw"), "size": item.size} for item in found.entries
        ]
    return [
        {"path": f"/disks/{disk['name']}.raw", "name": disk["name"], "size": disk["size_bytes"]}
        for disk in draft.workload.facts.get("disks", [])
        if not disk.get("why_left_out")
    ]


class Wizard:
    def __init__(self, site: UnfoldAdminSite) -> None:
        self.site = site

    # --- shared ---

    def _draft(self, request: HttpRequest, pk: UUID) -> RestoreDraft:
        """The user's own draft of a workload that he still may see."""
        draft = access.fetch(request.user, RestoreDraft, pk)
        if draft.user_id != request.user.pk or draft.workload is None:
            raise Http404
        access.require(request.user, Right.VIEW, draft.workload)
        return draft

    def _page(self, request: HttpRequest, template: str, step: str, draft: Any = None, **context: Any) -> HttpResponse:
        reached = [key for key, _word in STEPS].index(step)
        steps = [
            {
                "key": key,
                "word": word,
                "state": "now" if number == reached else "done" if number < reached else "todo",
                "url": self._step_url(key, draft) if number < reached else "",
            }
            for number, (key, word) in enumerate(STEPS)
        ]
        shown = {
            **self.site.each_context(request),
            "title": _("Restore"),
            "subtitle": str(draft.workload) if draft else None,
            "draft": draft,
            "steps": steps,
            **context,
        }
        return TemplateResponse(request, template, shown)

    @staticmethod
    def _step_url(key: str, draft: RestoreDraft | None) -> str:
        if key == "what" or draft is None:
            return reverse("admin:restore")
        return reverse(f"admin:restore_{key}", args=[draft.pk])

    def _to(self, key: str, draft: RestoreDraft) -> HttpResponse:
        return HttpResponseRedirect(self._step_url(key, draft))

    # --- steps ---

    def what(self, request: HttpRequest) -> HttpResponse:
        term = request.GET.get("q", "").strip()
        rows = access.visible(request.user, Workload).select_related("platform", "protection", "tenant")
        if term:
            rows = rows.filter(Q(name__icontains=term) | Q(platform__name__icontains=term))
        rows = rows.annotate(point_count=Count("points", distinct=True)).order_by("-point_count", "name")
        files = restore_search.find_files(request.user, term)
        return self._page(request, "brs/restore/what.html", "what", rows=rows[:FOUND_MAX], q=term, files=files)

    def new(self, request: HttpRequest) -> HttpResponse:
        """A deep link from a workload, a point or a file. An unfinished draft of the same workload is used again."""
        point = None
        if asked := request.GET.get("point"):
            point = access.fetch(request.user, RestorePoint, asked)
            workload = point.workload
        else:
            workload = access.fetch(request.user, Workload, request.GET.get("workload", ""))
        own = RestoreDraft.objects.filter(user=request.user, workload=workload, job=None)
        draft = own.order_by("-updated_at").first() or RestoreDraft(user=request.user, workload=workload)
        draft.tenant, draft.point, draft.target, draft.node = workload.tenant, point, {}, None
        draft.chosen = [request.GET["path"]] if request.GET.get("path") else []
        draft.save()
        return self._to("files" if point else "point", draft)

    def point(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        mine = self._draft(request, draft)
        points = list(
            access.visible(request.user, RestorePoint)
            .filter(workload=mine.workload)
            .exclude(copies__state=CopyState.EXPIRED)
            .prefetch_related("copies")
            .order_by("-taken_at")[: timeline.SHOWN]
        )
        if request.method == "POST":
            chosen = access.fetch(request.user, RestorePoint, request.POST.get("point", ""))
            if chosen.workload_id != mine.workload_id:
                raise Http404
            if chosen.pk != mine.point_id:
                mine.chosen = []
            mine.point = chosen
            mine.save()
            return self._to("files", mine)
        selected = next((one for one in points if one.pk == mine.point_id), None) or timeline.newest_good(points)
        line = timeline.build(points, timezone.now(), request.GET.get("zoom", ""))
        return self._page(request, "brs/restore/point.html", "point", mine, points=points, selected=selected, line=line)

    def files(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        mine = self._draft(request, draft)
        if mine.point is None:
            return self._to("point", mine)
        if request.method == "POST":
            mine.chosen = (
                [] if request.POST.get("what") == "all" else list(dict.fromkeys(request.POST.getlist("chosen")))
            )
            if request.POST.get("what") != "all" and not mine.chosen:
                messages.warning(request, _("Nothing is chosen. Tick files or folders, or take everything."))
                return self._to("files", mine)
            mine.save()
            return self._to("target", mine)
        copy = usable_copy(mine.point)
        if mine.workload.platform.holds_machines:
            shown = {"disks": _disks(mine, copy), "choosing": bool(mine.chosen)}
            return self._page(request, "brs/restore/disks.html", "files", mine, **shown)
        listing = browse.listing(copy, "/") if copy else None
        return self._page(
            request,
            "brs/restore/files.html",
            "files",
            mine,
            copy=copy,
            listing=listing,
            reading=self._reading(mine),
            choosing=bool(mine.chosen or "choose" in request.GET),
            may_download=access.can(request.user, Right.DOWNLOAD, mine.workload),
        )

    @staticmethod
    def _reading(draft: RestoreDraft) -> Job | None:
        """The job that fetches this point's list of files, when one is on its way or has just failed."""
        jobs = Job.objects.filter(restore_point=draft.point, kind=JobKind.BROWSE).order_by("-created_at")
        last = jobs.first()
        return last if last and (last.state in OPEN or last.state == State.FAILED) else None

    def tree(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        """A fragment: the entries of one folder, or what a search found. Names are hostile: escaped by the template."""
        mine = self._draft(request, draft)
        copy = usable_copy(mine.point) if mine.point else None
        if copy is None:
            raise Http404
        term, folder = request.GET.get("q", "").strip(), request.GET.get("path", "/")
        context: dict[str, Any] = {"draft": mine, "q": term}  # q: paths are shown whole
        if term:
            context["listing"] = browse.search(copy, term)
        else:
            context["listing"] = browse.listing(copy, folder)
        context["may_download"] = access.can(request.user, Right.DOWNLOAD, mine.workload)
        return TemplateResponse(request, "brs/restore/tree.html", context)

    def read_list(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        """POST: let a node read the list of files of a point whose policy keeps none on the server."""
        mine = self._draft(request, draft)
        if request.method == "POST" and mine.point is not None:
            requests.browse(request.user, mine.point)
        return HttpResponseRedirect(f"{self._step_url('files', mine)}?choose")

    def download_one(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        mine = self._draft(request, draft)
        if request.method != "POST" or mine.point is None:
            return self._to("files", mine)
        download = requests.download(request.user, mine.point, request.POST.get("path", ""))
        return HttpResponseRedirect(reverse("admin:download", args=[download.pk]))

    def target(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        mine = self._draft(request, draft)
        if mine.point is None:
            return self._to("point", mine)
        machines = mine.workload.platform.holds_machines
        kind = MachineTargetForm if machines else TargetForm
        form = kind(request.user, mine, request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            mine.node = form.cleaned_data["node"]
            mine.target = form.target()
            mine.save()
            return self._to("confirm", mine)
        default = "" if machines else default_target(mine)
        return self._page(request, "brs/restore/target.html", "target", mine, form=form, default=default)

    def confirm(self, request: HttpRequest, draft: UUID) -> HttpResponse:
        mine = self._draft(request, draft)
        if mine.point is None or not mine.target:
            return self._to("target", mine)
        error: DomainError | None = None
        if request.method == "POST":
            try:
                job = self._start(request, mine)
            except DomainError as refused:
                error = refused
            else:
                return HttpResponseRedirect(address(job))
        lines = machine_form.summary(mine) if mine.target.get("machine") else summary(mine)
        return self._page(
            request,
            "brs/restore/confirm.html",
            "confirm",
            mine,
            error=error,
            lines=[*lines, estimate.sentence(mine)],
            target=mine.target,
        )

    @staticmethod
    def _start(request: HttpRequest, draft: RestoreDraft) -> Job:
        from node_agent.protocol import RestoreTarget

        options = dict(draft.target)
        verify = bool(options.pop("verify", False))
        job = requests.restore(
            request.user,
            draft.point,
            chosen=draft.chosen,
            target=RestoreTarget(**options),
            node=draft.node,
            verify=verify,
        )
        draft.job = job
        draft.save(update_fields=["job"])
        return job

    def download(self, request: HttpRequest, download: UUID) -> HttpResponse:
        """Waits until the file lies on the server, then gives the link."""
        found = access.fetch(request.user, Download, download)
        if found.user_id != request.user.pk:
            raise Http404
        context = {
            **self.site.each_context(request),
            "title": _("Download"),
            "subtitle": found.file_name,
            "download": found,
            "job": found.job,
            "gone": found.expires_at < timezone.now(),
        }
        return TemplateResponse(request, "brs/download.html", context)
