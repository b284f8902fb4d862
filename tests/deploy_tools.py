"""Other people's programs on what is in deploy/, for tests/it/deploy. Exit codes: 0 all is well,
1 something is wrong (said on standard output), 3 a package is not installed (named there).

    deploy_tools.py validate VERSION    standard input: a JSON list of Kubernetes objects
    deploy_tools.py render CHART        standard input: {"name", "namespace", "values"}
    deploy_tools.py lint CHART
    deploy_tools.py promql              standard input: a JSON list of expressions
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

WRONG, NOT_INSTALLED = 1, 3

# The Kubernetes schemas say nothing of the Prometheus operator's kinds.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}


def not_installed(package):
    print(package)
    sys.exit(NOT_INSTALLED)


def wrong(faults):
    print("\n".join(faults))
    sys.exit(WRONG if faults else 0)


def validate(version):
    try:
        import kubernetes_validate as kubernetes
    except ImportError:
        not_installed("kubernetes-validate")
    faults = []
    for thing in json.load(sys.stdin):
        name = f"{thing['kind']} {thing['metadata']['name']}"
        try:
            kubernetes.validate(thing, version, strict=True)
        except kubernetes.ValidationError as error:
            path = ".".join(str(step) for step in error.path)
            faults.append(f"{name}: {path}: {error.message}")
        except kubernetes.SchemaNotFoundError as error:
            if thing["kind"] not in FOREIGN:
                faults.append(f"{name}: {error.message}")
    wrong(faults)


def render_by_program(helm, chart, order):
    """With the program, which says of a template where its text begins."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as values:
        json.dump(order["values"], values)
        values.flush()
        rendered = subprocess.run(
            [helm, "template", order["name"], chart, "--namespace", order["namespace"]]
            + ["--values", values.name],
            capture_output=True,
            text=True,
        )
    if rendered.returncode != 0:
        wrong([rendered.stderr.strip()])
    return [rendered.stdout]


def render_by_library(chart, order):
    try:
        import helm_python as helm
    except ImportError:
        not_installed("helm")
    with helm.Chart.load(chart) as loaded:
        try:
            rendered = loaded.render(
                order["values"], name=order["name"], namespace=order["namespace"]
            )
        except helm.HelmError as error:
            wrong([str(error)])
    return [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]


def render(chart):
    order = json.load(sys.stdin)
    helm = shutil.which("helm")
    texts = render_by_program(helm, chart, order) if helm else render_by_library(chart, order)
    print(json.dumps(texts))


def lint(chart):
    helm = shutil.which("helm")
    if helm:
        linted = subprocess.run([helm, "lint", "--strict", chart], capture_output=True, text=True)
        wrong([linted.stdout.strip()] if linted.returncode != 0 else [])
    try:
        import helm_python
    except ImportError:
        not_installed("helm")
    report = helm_python.lint(chart, strict=True)
    # 2 is a warning, 3 an error.
    messages = [m for m in report["messages"] if m["severity"] >= 2]
    wrong([f"{m['path']}: {m['error']}" for m in messages] + report["errors"])


def promql():
    try:
        import promql_parser
    except ImportError:
        not_installed("promql-parser")
    faults = []
    for expression in json.load(sys.stdin):
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            faults.append(f"{expression}: {error}")
    wrong(faults)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"validate": validate, "render": render, "lint": lint, "promql": promql}[command](*arguments)
