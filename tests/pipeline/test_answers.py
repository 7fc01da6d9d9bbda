"""Stored answers through the command line: made once, learned from twice, and refused where they do not belong."""

from __future__ import annotations

import json
import re

import pytest

HEAD = """
name: answers
seed: 3
data: {dataset: digits, train_samples: 200, test_samples: 60}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [16]}, epochs: 2, batch_size: 32, threads: 1}
  answers: {stage: answers, teacher: teacher, shift_px: 1, views: 4, threads: 1}
"""
STUDENT = "{stage: distill, teacher: teacher, answers: answers, model: {name: mlp, widths: [8]}, epochs: 2, threads: 1"
TWO = HEAD + f"  student: {STUDENT}, batch_size: 32}}\n  warmer: {STUDENT}, batch_size: 32, temperature: 8}}\n"

# text of the recipe, exit code, what the message says
WRONG = {
    "other views": (
        HEAD + f"  student: {STUDENT}, flip: true}}\n",
        2,
        r"the answers are to other views: flip is True, the answers have False",
    ),
    "another teacher": (
        HEAD
        + "  other: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1, threads: 1}\n"
        + f"  student: {STUDENT.replace('teacher: teacher', 'teacher: other')}}}\n",
        5,
        r"those of another teacher: digest [0-9a-f]{12}; this step's is step 'other' \(digest [0-9a-f]{12}\)",
    ),
    "answers that are a checkpoint": (
        HEAD + f"  student: {STUDENT.replace('answers: answers', 'answers: teacher')}}}\n",
        2,
        r"answers takes TeacherOutputs, but step 'teacher' makes Checkpoint; candidates: answers",
    ),
    "endless views": (
        HEAD.replace(", views: 4", ""),
        2,
        r"shift_px needs views",
    ),
}


@pytest.mark.slow
def test_answers_are_made_once_and_learned_from_twice(cli, tmp_path):
    (tmp_path / "answers.yaml").write_text(TWO)

    def statuses(command: str, *arguments: str) -> dict[str, str]:
        done = cli(command, "answers.yaml", "--store", "store", "--json", *arguments, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        return {step["name"]: step["status"] for step in json.loads(done.stdout)["steps"]}

    assert statuses("run") == dict.fromkeys(["teacher", "answers", "student", "warmer"], "run")
    assert set(statuses("run").values()) == {"hit"}
    (folder,) = (tmp_path / "store" / "answers").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "teacher_outputs"
    assert set(manifest["key_document"]["data"]) == {"train", "unlabelled"}
    for path in (tmp_path / "store" / "distill").iterdir():
        learned = json.loads((path / "manifest.json").read_text())
        saved = {metric["name"]: metric["value"] for metric in learned["metrics"]}
        assert (saved["teacher_hit_rate"], saved["teacher_cache"]) == (1, 4 * manifest["metrics"][0]["n"] * 10 * 2)
        assert saved["teacher_saved"] > 0

    shown = cli("show", f"answers/{folder.name}", "--store", "store", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"answers\.json\n(.*\n)* +augmentation\.views +4\n", shown.stdout), shown.stdout
    assert re.search(rf"teachers +{manifest['inputs']['teacher'][0]['digest']}\n", shown.stdout), shown.stdout

    # The key of the answers holds their teacher, seed and training images, and nothing of the test images.
    assert statuses("plan", "--set", "data.test_samples=50")["answers"] == "hit"
    for change in ("seed=4", "steps.teacher.epochs=1", "steps.answers.views=3", "data.train_samples=180"):
        assert statuses("plan", "--set", change)["answers"] != "hit", change


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused(wrong, assert_refused, name):
    text, code, message = WRONG[name]
    done = wrong(text)
    assert_refused(done, code, message)
    assert code == 2 or re.search(r"step student", done.stderr)
