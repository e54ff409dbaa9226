"""`deploy`: manifests that are valid, name every worker, and restart a training as a whole."""

from __future__ import annotations

import os
import re
import subprocess
from functools import partial

import pytest
from flat_helpers import CONFIG, make_log
from manifest_helpers import BUCKET, container_of, deployed, pod_of, problems_of

from easyrec_mm.cli import main as cli
from easyrec_mm.distribution.cluster import Cluster, read_cluster
from easyrec_mm.distribution.cluster import expanded as addresses_of
from easyrec_mm.errors import LostWorkerError, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_log(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def deploy(folder, capsys):
    """Runs `deploy` for x.config; returns the documents by kind."""
    return partial(deployed, capsys)


def threads_of(container):
    return {each["name"]: each["value"] for each in container["env"]}


def expanded(argument):
    """What Kubernetes makes of an argument, in which no variable of the container is named: $$ is $."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", argument), "the value of a variable would stand here"
    return argument.replace("$$", "$")


def run_container(container, folder, number):
    """Run a container's command with a program `easyrec-mm` that tells its arguments and TF_CONFIG."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "easyrec-mm"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$PPID" "$TF_CONFIG" "$@"\n')
    program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    command = [expanded(argument) for argument in [*container["command"], *container["args"]]]
    process = subprocess.Popen(command, env={"PATH": path, "JOB_COMPLETION_INDEX": str(number)}, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    parent, tf_config, *arguments = output.decode().split("\0")[:-1]
    assert int(parent) == os.getpid(), "a shell between would not pass SIGTERM on"
    return tf_config, arguments


@pytest.mark.parametrize("kind", ["job", "tfjob"])
def test_what_is_wrong_in_a_manifest_would_be_found(deploy, kind):
    document = [*deploy(f"--kind={kind}").values()][-1]
    container = container_of({document["kind"]: document})
    container["prots"] = container.pop("ports")
    document["spec"]["paralellism"] = 2
    report = "\n".join(problems_of(document, "x"))
    assert "x.spec.paralellism: " in report
    assert "containers[0].prots: V1Container has no such field" in report


# --- What runs


def test_the_command_of_a_job_tells_each_worker_who_it_is(deploy, folder):
    container = container_of(deploy("--name=ctr", workers=12))
    workers = tuple(f"ctr-{number}.ctr:2222" for number in range(12))
    for number in (0, 1, 11):
        tf_config, _ = run_container(container, folder, number)
        assert read_cluster({"TF_CONFIG": tf_config}) == Cluster(workers, number)


def test_the_command_trains_with_the_given_flags_as_they_are(deploy, folder):
    odd = ["--set", 'train_config.fine_tune_checkpoint="$(HOME) $$x `id` \' \\ ${y}"', "--wait_for_workers_s", "60"]
    container = container_of(deploy(train=[BUCKET, *odd]))
    _, arguments = run_container(container, folder, 0)
    assert [argument for argument in odd if argument not in arguments] == []
    flags = cli.make_parser().parse_args(arguments)
    assert flags.command == "train"
    assert flags.pipeline_config == "/etc/easyrec-mm/pipeline.config"
    assert flags.set[-1] == "train_config.train_distribute=MultiWorkerMirroredStrategy"
    assert flags.wait_for_workers_s == 60


def test_workers_wait_longer_for_each_other_than_kubernetes_before_it_starts_one_again(deploy, folder):
    _, arguments = run_container(container_of(deploy()), folder, 0)
    assert cli.make_parser().parse_args(arguments).wait_for_workers_s > 600


def test_a_tfjob_runs_the_same_in_the_container_that_the_operator_knows(deploy, folder):
    documents = deploy("--kind=tfjob", "--name=ctr")
    container = container_of(documents)
    assert container["name"] == "tensorflow"
    assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
    tf_config, arguments = run_container(container, folder, 0)
    assert tf_config == ""  # the operator sets it
    assert arguments == run_container(container_of(deploy("--name=ctr")), folder, 0)[1]
    assert documents["TFJob"]["spec"]["tfReplicaSpecs"]["Worker"]["replicas"] == 3


def test_names_lead_to_the_pods(deploy):
    documents = deploy("--name=ctr")
    service, job = documents["Service"], documents["Job"]["spec"]
    pod = job["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == pod["spec"]["subdomain"] == documents["Job"]["metadata"]["name"] == "ctr"
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)


# --- Restarts


def outcome(job, status, conditions=()):
    """What the Job controller does with a pod that failed so: the first rule that fits."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes, pattern = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes:
            assert codes["containerName"] == container_of({"Job": job})["name"]
            assert codes["operator"] == "In"
            assert 0 not in codes["values"]  # refused by the API
        if status in codes["values"] if codes else any(each["type"] in conditions for each in pattern):
            return rule["action"]
    return "Count"


def test_a_lost_worker_starts_all_again(deploy):
    job = deploy("--max_restarts=4")["Job"]
    assert outcome(job, 137) == "Count"  # killed, as for its memory
    assert outcome(job, LostWorkerError("worker 1 ...").exit_status) == "Ignore"  # the others, which name it
    assert outcome(job, UserError("...").exit_status) == "Count"
    assert job["spec"]["backoffLimitPerIndex"] == 4
    assert job["spec"]["maxFailedIndexes"] == 0  # no worker goes on without another
    assert "backoffLimit" not in job["spec"]
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def test_workers_that_were_told_to_end_are_no_failure(deploy):
    job = deploy()["Job"]
    assert outcome(job, 143) == "Ignore"  # they have saved
    assert outcome(job, 137, ["DisruptionTarget"]) == "Ignore"
    assert pod_of({"Job": job})["spec"]["terminationGracePeriodSeconds"] >= 60


def test_what_no_restart_changes_ends_the_job(deploy):
    job = deploy()["Job"]
    with pytest.raises(SystemExit) as invalid:
        cli.main(["train", "--no_such_flag"])
    assert outcome(job, invalid.value.code) == "FailJob"
    assert outcome(job, subprocess.run(["sh", "-c", "exec no-such-program"], check=False).returncode) == "FailJob"


def test_what_the_api_demands_of_a_job_with_a_failure_policy(deploy):
    job = deploy()["Job"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"


def test_a_tfjob_restarts_whatever_the_status_and_counts_all_workers(deploy):
    job = deploy("--kind=tfjob", "--max_restarts=4")["TFJob"]["spec"]
    assert job["tfReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    assert job["runPolicy"]["backoffLimit"] == 12


# --- Pods


@pytest.mark.parametrize("kind", ["job", "tfjob"])
def test_resources_volumes_and_accounts(deploy, kind):
    documents = deploy(
        f"--kind={kind}", "--cpu=7500m", "--memory=16Gi", "--gpus=1", "--claim=shared.data:/work/",
        "--claim=more:/more", "--secret=bucket", "--service_account=trainer", train=(),
    )  # fmt: skip
    container, pod = container_of(documents), pod_of(documents)["spec"]
    amounts = {"cpu": "7500m", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert threads_of(container) == dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "8")
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    assert {mount["mountPath"]: claims[mount["name"]] for mount in container["volumeMounts"]} == {
        "/work": "shared.data",
        "/more": "more",
        "/etc/easyrec-mm": None,
    }
    assert container["workingDir"] == "/work"
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert pod["serviceAccountName"] == "trainer"
    assert "automountServiceAccountToken" not in pod


@pytest.mark.parametrize(("kind", "port"), [("job", "workers"), ("tfjob", "tfjob-port")])
def test_a_pod_with_several_gpus_has_a_process_and_a_port_for_each(deploy, folder, kind, port):
    documents = deploy(f"--kind={kind}", "--gpus=3", "--name=ctr", "--cpu=7")
    container = container_of(documents)
    assert container["resources"]["limits"] == {"cpu": "7", "nvidia.com/gpu": "3"}
    assert set(threads_of(container).values()) == {"3"}
    assert [each["name"] for each in container["ports"]] == [port, f"{port}-1", f"{port}-2"]
    tf_config, arguments = run_container(container, folder, 0)
    flags = cli.make_parser().parse_args(arguments)
    assert flags.set[-2:] == [
        "train_config.num_gpus_per_worker=3", "train_config.train_distribute=MultiWorkerMirroredStrategy"
    ]  # fmt: skip
    ports = [each["containerPort"] for each in container["ports"]]
    if kind == "job":
        first = addresses_of(read_cluster({"TF_CONFIG": tf_config}).workers, 3)[:3]
        assert first == tuple(f"ctr-0.ctr:{number}" for number in ports)
        assert [each["port"] for each in documents["Service"]["spec"]["ports"]] == ports
    one = container_of(deploy(f"--kind={kind}", "--gpus=1"))
    assert [each["name"] for each in one["ports"]] == [port]


@pytest.mark.parametrize("kind", ["job", "tfjob"])
def test_a_pod_has_no_more_rights_than_it_needs(deploy, kind):
    documents = deploy(f"--kind={kind}")
    pod, container = pod_of(documents)["spec"], container_of(documents)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # The first process of a container ignores SIGTERM until the program handles it.
    assert pod["shareProcessNamespace"] is True
    assert pod["automountServiceAccountToken"] is False
    assert "resources" not in container


@pytest.mark.parametrize(
    "more", ["# \u4ef7\u683c\n", "# \u200fmirrored\n", "#\x01\n", '# "$(HOME)" $$\t|\n  # end \n', "#"]
)
def test_a_config_of_this_machine_comes_along_letter_by_letter(deploy, folder, more):
    text = CONFIG + more
    (folder / "x.config").write_text(text, encoding="utf-8")
    documents = deploy("--name=ctr")
    assert documents["ConfigMap"]["data"] == {"pipeline.config": text}
    (volume,) = pod_of(documents)["spec"]["volumes"]
    assert volume["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]


def test_a_config_on_a_volume_is_read_there(deploy, folder):
    documents = deploy(f"--claim=shared:{folder}", "--name=ctr", config=str(folder / "x.config"), train=())
    assert "ConfigMap" not in documents
    _, arguments = run_container(container_of(documents), folder, 0)
    assert cli.make_parser().parse_args(arguments).pipeline_config == str(folder / "x.config")


def test_a_name_is_made_from_that_of_the_config(deploy, folder, capsys):
    (folder / "Click_Model.v2.config").write_text(CONFIG)
    assert deploy(config="Click_Model.v2.config")["Job"]["metadata"]["name"] == "click-model"
    (folder / "1.config").write_text(CONFIG)
    assert cli.main(["deploy", "--workers=1", "--image=i", "--pipeline_config=1.config", "--", BUCKET]) == 1
    assert "--name: '1' is not a DNS label" in capsys.readouterr().err
