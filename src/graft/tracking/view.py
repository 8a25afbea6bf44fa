"""The prepared view: one sweep in MLflow's UI, with its columns, order and charts.

Left alone, the runs table of MLflow 3 has no column of a metric or a parameter. Its UI keeps shared
views in the experiment's tags `mlflow.sharedViewState.<key>`, and opens one by a link. That format
is the UI's own and not documented: a test in a browser guards it, and nothing depends on it.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from graft.config import METRICS
from graft.tracking.client import now_ms
from graft.tracking.letter import metric_key, name_of

TAG = "mlflow.sharedViewState."

_WIDTH_PX = 150  # the name of a metric is cut in the UI's own width


def key_of(sweep_id: str) -> str:
    """The view's key: part of a tag's name and of a link."""
    return re.sub(r"[^\w.-]", "_", sweep_id, flags=re.ASCII)


def link(address: str, experiment: str, sweep_id: str) -> str:
    """Opens the view's charts; the list button beside its filter shows the table."""
    return (
        f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={key_of(sweep_id)}"
    )


def text(sweep_id: str, name: str, axes: Sequence[str], metric: str) -> str:
    """The tag's value.

    Args:
        sweep_id: value of the runs' tag `sweep.id`.
        name: shown in the menu "Views".
        axes: keys that the sweep varies.
        metric: what selects, such as `val_accuracy`.
    """
    now = now_ms()
    state = _state(sweep_id, [name_of(axis) for axis in axes], metric)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return json.dumps(view)


def _state(sweep_id: str, axes: Sequence[str], metric: str) -> dict[str, Any]:
    best = f"best/{metric}"
    curve = metric_key(metric)
    bars = list(dict.fromkeys([best, "best/val_accuracy", "test/accuracy"]))
    curves = [key for key in ("val/accuracy", "val/loss", "train/loss") if key != curve]
    columns = [f"metrics.`{key}`" for key in bars] + [f"params.`{axis}`" for axis in axes]
    return {
        "searchFilter": f"tags.`sweep.id` = '{sweep_id}' and tags.role = 'run'",
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": METRICS.get(metric, "max") == "min",
        "selectedColumns": [*columns, "attributes.`Duration`", "tags.`status`"],
        "columnOrder": columns,
        "columnWidths": {column: _WIDTH_PX for column in columns},
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        # Else the sections are sorted by name, and ours are not the first.
        "isAccordionReordered": True,
        "compareRunSections": [
            _section("comparison", "Comparison", num_columns=2),
            _section("curves", "Curves", num_columns=2),
        ],
        "compareRunCharts": [
            _parallel("comparison", axes, best),
            _chart("BAR", "comparison", best),
            _chart("LINE", "comparison", curve),
            *(_chart("BAR", "comparison", key) for key in bars[1:]),
            *(_chart("LINE", "curves", key) for key in curves),
        ],
    }


def _section(key: str, name: str, num_columns: int) -> dict[str, Any]:
    return {
        "uuid": key,
        "name": name,
        "columns": num_columns,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }


def _parallel(section: str, axes: Sequence[str], metric: str) -> dict[str, Any]:
    return {
        **_card("PARALLEL", section, "axes"),
        "selectedParams": list(axes),
        "selectedMetrics": [metric],
        "showAllRuns": True,
    }


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    card = {**_card(kind, section, metric), "metricKey": metric, "displayName": metric}
    if kind == "BAR":
        return card
    # Left out, a curve is smoothed.
    smooth = {"lineSmoothness": 0, "useGlobalLineSmoothing": False}
    return {**card, **smooth, "selectedMetricKeys": [metric], "xAxisKey": "step"}


def _card(kind: str, section: str, key: str) -> dict[str, Any]:
    return {
        "uuid": f"{section}-{key}",
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
