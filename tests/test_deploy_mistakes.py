"""`deploy`: what Kubernetes, kubectl, Linux or `train` would refuse is refused before anything is printed."""

from __future__ import annotations

from functools import partial

import pytest
from flat_helpers import CONFIG, make_log
from manifest_helpers import BUCKET, container_of, deployed

from easyrec_mm.cli import main as cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_log(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def deploy(folder, capsys):
    """Runs `deploy` for x.config; returns the documents by kind."""
    return partial(deployed, capsys)


def refusal(capsys, *arguments, train=(BUCKET,)):
    """Exit status and message of a command; nothing is printed that kubectl would take."""
    values = {"--workers": "2", "--image": "i", "--pipeline_config": "x.config", "--name": "ctr"}
    values.update(zip(arguments[::2], arguments[1::2], strict=True))
    flags = [f"{flag}={value}" for flag, value in values.items()]
    try:
        status = cli.main(["deploy", *flags, "--", *train])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert said.out == ""
    return status, said.err.strip().split("\n")[-1]


@pytest.mark.parametrize("path", ["/etc/easyrec-mm", "/etc/easyrec-mm/data"])
def test_a_claim_where_the_config_is_mounted(folder, capsys, path):
    status, message = refusal(capsys, "--claim", f"work:{path}")
    assert status == 1
    assert message == f"error: --claim: {path}: the config is mounted at /etc/easyrec-mm; choose another folder"


@pytest.mark.parametrize("name", ["Ctr", "1ctr", "ctr-", "c_r", "c.r", "", "c" * 62, "a\nb"])
def test_a_name_that_is_no_label(folder, capsys, name):
    status, message = refusal(capsys, "--name", name)
    assert status == 1
    assert "is not a DNS label; give up to 61 lower-case letters, digits and '-', which begin" in message


@pytest.mark.parametrize(("kind", "workers", "longest"), [("job", 101, 59), ("tfjob", 11, 53)])
def test_the_longest_name(deploy, capsys, kind, workers, longest):
    deploy(f"--kind={kind}", f"--name={'c' * longest}", workers=workers)
    _, message = refusal(capsys, "--kind", kind, "--name", "c" * (longest + 1), "--workers", str(workers))
    assert f"give up to {longest} lower-case letters" in message


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--workers", "0", "argument --workers: '0' is not a whole number, 1 or more"),
        ("--image", "", "argument --image: '' is not the name of an image"),
        ("--image", "a b", "argument --image: 'a b' is not the name of an image"),
        ("--gpus", "-1", "argument --gpus: '-1' is not a whole number, 0 or more"),
        ("--gpus", "65", "argument --gpus: '65' is more than 64, the GPUs of a machine"),
        ("--claim", "a..b:/w", "argument --claim: 'a..b' is not the name of a claim"),
        ("--secret", "a.-b", "argument --secret: 'a.-b' is not the name of a Secret"),
        ("--cpu", "0", "argument --cpu: '0' is not a number of cores, such as 4 or 500m"),
        ("--cpu", "four", "argument --cpu: 'four' is not a number of cores"),
        ("--memory", "16", "argument --memory: '16' is not a size with its unit, such as 16Gi"),
        ("--memory", "0Gi", "argument --memory: '0Gi' is not a size"),
        ("--claim", "work", "argument --claim: 'work': give the claim and an absolute folder, as in shared:/work"),
        ("--claim", "work:m", "argument --claim: 'work:m': give the claim and an absolute folder"),
        ("--claim", "work:/", "argument --claim: 'work:/': give the claim and an absolute folder"),
        ("--claim", "Work:/w", "argument --claim: 'Work' is not the name of a claim"),
        ("--secret", "s_1", "argument --secret: 's_1' is not the name of a Secret"),
        ("--service_account", "-a", "argument --service_account: '-a' is not the name of a service account"),
    ],
)
def test_values_that_kubernetes_would_refuse(folder, capsys, flag, value, message):
    status, said = refusal(capsys, flag, value)
    assert status == 2
    assert message in said


@pytest.mark.parametrize(
    ("model_dir", "claim", "message"),
    [
        (
            "m",
            None,
            "model_dir: 'm' would be another folder in each worker; give a bucket, such as s3://bucket/folder, or",
        ),
        ("/data/m", None, "model_dir: '/data/m' would be another folder in each worker"),
        ("/data/m", "work:/work", "model_dir: '/data/m' is not in the folder of a --claim (/work); give a bucket"),
        ("/work/../m", "work:/work", "model_dir: '/work/../m' is not in the folder of a --claim (/work)"),
    ],
)
def test_a_model_dir_that_workers_do_not_share(folder, capsys, model_dir, claim, message):
    arguments = ("--claim", claim) if claim else ()
    status, said = refusal(capsys, *arguments, train=("--model_dir", model_dir))
    assert status == 1
    assert message in said


def test_configs_that_do_not_load(folder, capsys):
    assert refusal(capsys, "--pipeline_config", "none.config") == (
        1,
        "error: none.config: no such file; give the path of a pipeline config",
    )
    (folder / "x.config").write_text(CONFIG.replace("hash_bucket_size", "hash_bucket_siz"))
    assert "did you mean 'hash_bucket_size'?" in refusal(capsys)[1]


@pytest.mark.parametrize(("sign", "num", "fits"), [("#", 230_000, True), ("#", 270_000, False), ("#<", 60_000, False)])
def test_a_config_that_kubectl_apply_could_not_send(folder, capsys, deploy, sign, num, fits):
    """It keeps the object in an annotation, for which Kubernetes has 256 KiB; Go writes < with six letters."""
    text = CONFIG + sign * num
    (folder / "x.config").write_text(text)
    if fits:
        assert deploy()["ConfigMap"]["data"] == {"pipeline.config": text}
    else:
        assert "x.config: is too large for a ConfigMap, which may have 261120 bytes with kubectl" in refusal(capsys)[1]


def test_more_workers_than_a_command_can_name(capsys, deploy):
    """Linux takes no argument of 128 KiB or more: `getconf ARG_MAX` is the limit of all together."""
    deploy(workers=3000)
    status, said = refusal(capsys, "--workers", "9000")
    assert (status, "error: --workers 9000: their names and the flags behind -- have " in said) == (1, True)


@pytest.mark.parametrize(("gpus", "setting", "is_refused"), [("0", 4, True), ("2", 4, True), ("4", 4, False)])
def test_gpus_that_the_config_names(capsys, deploy, gpus, setting, is_refused):
    """Otherwise the containers would compute without the GPUs that the config asks for."""
    flags = (BUCKET, f"--set=train_config.num_gpus_per_worker={setting}")
    if not is_refused:
        assert container_of(deploy(f"--gpus={gpus}", train=flags))["resources"]["limits"] == {"nvidia.com/gpu": gpus}
        return
    status, said = refusal(capsys, "--gpus", gpus, train=flags)
    message = f"x.config: train_config.num_gpus_per_worker: is {setting}, but --gpus is {gpus}; give --gpus {setting},"
    assert (status, message in said) == (1, True)


def test_flags_of_train_are_checked(folder, capsys):
    status, said = refusal(capsys, train=("--no_such_flag",))
    assert (status, said) == (2, "easyrec-mm train: error: unrecognized arguments: --no_such_flag")
    status, said = refusal(capsys, train=("--pipeline_config", "y.config"))
    assert (status, "--pipeline_config y.config: stands behind --, too; give it once" in said) == (1, True)
    assert "no_such" in refusal(capsys, train=(BUCKET, "--set", "train_config.no_such=1"))[1]


def test_passwords_are_not_printed(folder, capsys):
    status, said = refusal(capsys, train=(BUCKET, "--set", "train_input_path=https://u:secret@host/x.csv"))
    assert (status, "secret" in said) == (1, False)
    assert "contains a password or token, which the manifests would show; put the config into a bucket" in said


def test_data_that_only_the_image_can_have_are_noted(deploy, capsys, folder):
    flags = ["deploy", "--workers=2", "--image=i", "--pipeline_config=x.config"]
    assert cli.main([*flags, "--", BUCKET]) == 0
    said = capsys.readouterr().err
    assert said == "note: train_input_path 'train.csv' is not in a bucket or a --claim: the image must contain it\n"
    assert cli.main([*flags, "--claim=w:/work"]) == 0
    assert capsys.readouterr().err == ""
