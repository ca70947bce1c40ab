"""What backups made so far may have left on platforms: one row for each machine and repository that has points of it."""

from django.db import migrations

MACHINES = ("kvm", "rbd")


def remember(apps, _schema_editor):
    Trace = apps.get_model("catalog", "Trace")
    PointCopy = apps.get_model("catalog", "PointCopy")
    kept = PointCopy.objects.filter(point__workload__platform__kind__in=MACHINES).exclude(repository__repository_id="")
    pairs = kept.order_by().values_list(
        "point__workload_id", "repository_id", "repository__repository_id", "point__workload__platform__options"
    )
    rows = {
        (workload, mark[:8]): Trace(
            workload_id=workload,
            repository_id=repository,
            owner=mark[:8],
            by_backup=True,
            in_cluster="rbd-snapshots" in (options or {}),
        )
        for workload, repository, mark, options in pairs.iterator()
    }
    Trace.objects.bulk_create(rows.values(), batch_size=500, ignore_conflicts=True)


class Migration(migrations.Migration):
    dependencies = [("catalog", "0004_traces"), ("inventory", "0008_machine_limits")]

    operations = [migrations.RunPython(remember, migrations.RunPython.noop)]
