"""Shells complete commands, flags and their values by the scripts of `easyrec-mm completion`."""

import shutil
import subprocess

import pytest

from easyrec_mm.cli.completion import SHELLS
from easyrec_mm.cli.main import COMMANDS, main
from easyrec_mm.weights.catalog import CATALOG


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Shell -> file of its script."""
    folder = tmp_path_factory.mktemp("scripts")
    commands = {shell: ["completion", shell] for shell in SHELLS}
    files = {}
    for shell, command in commands.items():
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(command) == 0
        files[shell] = folder / shell
    return files


def completed(script, folder, *words):
    """Return what bash offers for the last of the words of a command line."""
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        "spec=$(complete -p easyrec-mm); function=${spec##*-F }; ${function%% *} 2>/dev/null\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", code, "bash", str(script), "easyrec-mm", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_bash_completes_commands_flags_choices_and_files(scripts, tmp_path):
    (tmp_path / "demo.config").touch()
    (tmp_path / "other").mkdir()

    def complete(*words):
        return completed(scripts["bash"], tmp_path, *words)

    assert set(complete("")) == set(COMMANDS)
    assert complete("exp") == ["export"]
    assert complete("train", "--pipeline_config", "d") == ["demo.config"]
    assert complete("train", "--pipeline_c") == ["--pipeline_config", "--pipeline_config_path"]
    assert complete("group", "--format", "") == ["parquet", "tfrecord", "rtp"]
    assert complete("serve", "--json") == ["--json_logs"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("check", "--num_groups", "o") == []
    assert set(complete("weights", "fetch", "")) == set(CATALOG)
    assert complete("weights", "fetch", "efficientnet_lite0"[:-1]) == ["efficientnet_lite0"]
    assert complete("group", "--preset", "efficientnet_l") == ["efficientnet_lite0"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["group", "--format", "=", "pa"], ["parquet"]),
        (["group", "--format", "="], ["parquet", "tfrecord", "rtp"]),
        (["group", "--format=pa"], ["--format=parquet"]),
        (["train", "--pipeline_config", "=", "d"], ["demo.config"]),
        (["group", "--format", "=", "rtp", "--engine", "sp"], ["spark"]),
        (["group", "--format=rtp", "--engine", "=", "lo"], ["local"]),
        (["train", "--set", "train_config.num_steps=5", "--qu"], ["--quiet"]),
        (["train", "--set", "train_config.num_steps", "=", "5", "--qu"], ["--quiet"]),
    ],
)
def test_bash_completes_values_behind_an_equals_sign(scripts, tmp_path, words, offered):
    """Bash parts words at it, unless COMP_WORDBREAKS says otherwise."""
    (tmp_path / "demo.config").touch()
    assert completed(scripts["bash"], tmp_path, *words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_is_one_of_its_shell_and_names_every_command(shell, scripts):
    text = scripts[shell].read_text()
    assert all(command in text for command in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n", scripts[shell]], check=True)


def test_the_script_of_zsh_loads_what_it_needs_before_it_registers_itself(scripts):
    """Without a .zshrc that has done so, `compdef` does not exist."""
    text = scripts["zsh"].read_text()
    assert 0 < text.index("autoload -Uz compinit && compinit") < text.index("compdef _shtab_easyrec_mm")
    assert "compinit" not in scripts["bash"].read_text() + scripts["fish"].read_text()
    if shutil.which("zsh"):
        code = f'eval "$(<{scripts["zsh"]})"; print -r -- $_comps[easyrec-mm]'
        done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("_shtab_easyrec_mm\n", "")


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "csh"])
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err
