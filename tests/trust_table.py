"""Counts the faults that the tests try, by class, and writes the table of docs/trust.md: `make trust`.

A test counts as one fault, or as many as it says by `record_property("faults", n)`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "trust.md"
CLASSES = {
    "a process killed before any step that touches a file, a disk that fills up": (
        "test_disk_faults.py::test_killed_before_any_step_or_without_room_the_old_file_or_the_new_one_is_whole",
    ),
    "jobs killed or stopped half way": (
        "test_grid.py::test_a_killed_job_goes_on",
        "test_grid.py::test_a_file_torn_anywhere_is_completed",
        "test_grid.py::test_an_interrupted_grid_keeps_its_rows_and_leaves_the_model_as_it_was",
        "test_finetune.py::test_a_killed_finetune_goes_on_where_it_was",
        "test_experiment.py::test_a_killed_experiment_loses_nothing_and_repeats_nothing",
        "test_endpoint.py::test_a_killed_run_asks_only_for_what_is_missing",
        "test_saving.py::test_a_save_stopped_while_folders_change_places_leaves_the_old_one",
    ),
    "two processes, two threads": (
        "test_disk_faults.py::test_finetunes_exports_and_steered_adapters_are_made_by_one_process_at_a_time",
        "test_files.py::test_a_second_writer_is_refused_at_once_until_the_first_is_gone_even_if_killed",
        "test_grid.py::test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on",
        "test_steering_state.py::test_a_thread_does_not_steer_in_the_block_of_another",
        "test_steering_state.py::test_passes_of_two_threads_take_turns",
    ),
    "files with a field that is missing, of another type or beyond what it can be": (
        "test_hostile_files.py::test_each_field_of_a_file_is_read_or_refused_whatever_stands_there",
        "test_hostile_files.py::test_a_row_that_cannot_be_is_refused_with_its_line",
        "test_hostile_files.py::test_a_row_of_which_the_record_knows_nothing_is_refused_with_its_line",
    ),
    "files that are torn, too deep, too large or say more than they hold": (
        "test_hostile_files.py::test_a_document_that_is_too_deep_or_torn_is_refused",
        "test_hostile_files.py::test_yaml_that_multiplies_itself_is_refused",
        "test_hostile_files.py::test_an_archive_of_torch_that_says_more_than_it_holds_is_refused_before_it_is_read",
        "test_hostile_files.py::test_a_rank_beyond_the_tensors_is_refused_before_memory_is_taken",
        "test_hostile_files.py::test_a_gguf_header_that_says_more_than_the_file_holds_is_refused",
    ),
    "settings that name code": (
        "test_configs_are_data.py::test_every_setting_of_every_command_is_made_of_plain_data",
        "test_configs_are_data.py::test_what_a_setting_names_is_neither_imported_nor_built",
        "test_configs_are_data.py::test_a_nested_file_of_settings_is_data_too",
    ),
    "text that commands a terminal, a spreadsheet, a document or a judge": (
        "test_hostile_text.py::test_no_text_commands_a_terminal_or_a_document",
        "test_hostile_text.py::test_no_cell_of_a_csv_is_a_formula",
        "test_hostile_text.py::test_errors_warnings_and_logs_are_plain_lines_of_bearable_length",
        "test_hostile_text.py::test_no_text_turns_the_order_of_others_on_the_page",
        "test_hostile_text.py::test_a_picture_that_is_a_link_is_not_shown",
        "test_hostile_text.py::test_an_answer_cannot_close_what_marks_it",
    ),
    "servers that fail, send on, never end or echo the key": (
        "test_endpoint.py::test_each_fault_is_repeated_as_often_as_allowed_and_no_more",
        "test_hostile_text.py::test_a_request_is_sent_on_to_nobody",
        "test_hostile_text.py::test_a_reply_without_an_end_is_not_waited_for",
        "test_hostile_text.py::test_a_packed_reply_is_not_unpacked",
        "test_sources.py::test_a_download_without_an_end_is_not_waited_for",
        "test_hostile_text.py::test_a_key_is_masked_however_json_writes_it",
        "test_hostile_text.py::test_a_judge_whose_server_goes_down_in_a_run_is_one_line",
    ),
    "errors of libraries, each one line": (
        "test_hostile_text.py::test_whatever_a_library_raises_is_one_line_and_the_rest_for_debug",
    ),
    "numbers that are none, or too large": (
        "test_numbers.py::test_logits_and_activations_that_are_no_numbers_are_said",
        "test_numbers.py::test_a_push_beyond_all_numbers_is_said",
        "test_numbers.py::test_an_adapter_with_a_number_that_is_none_is_refused_and_the_model_as_it_was",
        "test_numbers.py::test_what_cannot_be_a_direction_is_refused",
        "test_numbers.py::test_a_file_of_float64_beyond_float32_is_refused_in_words",
        "test_numbers.py::test_a_multiplier_that_is_no_number_is_refused",
        "test_numbers.py::test_a_training_run_without_numbers_stops_with_a_cure_and_leaves_nothing",
    ),
    "a failure inside a job on a model that was lent": (
        "test_lent_model.py::test_wherever_a_job_fails_the_model_is_what_it_was",
    ),
    "a model that is steered already": (
        "test_steering_state.py::test_a_notebook_cell_that_runs_twice_leaves_nothing_after_unsteer",
        "test_steering_state.py::test_what_is_to_be_measured_unsteered_is_refused_while_another_wrapper_steers",
        "test_steering_state.py::test_a_judge_is_not_steered",
        "test_steering_state.py::test_what_is_done_inside_paused_holds_from_its_end_on",
        "test_steering_state.py::test_a_copy_is_independent_and_of_a_steered_model_refused",
    ),
}


def counted() -> dict[str, tuple[int, int]]:
    """Class -> faults tried, faults survived."""
    tests = [f"tests/{test}" for some in CLASSES.values() for test in some]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    return {name: _of_class(cases, tests) for name, tests in CLASSES.items()}


def _of_class(cases: list[ElementTree.Element], tests: tuple[str, ...]) -> tuple[int, int]:
    tried = survived = 0
    for case in cases:
        file, name = case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0]
        if f"{file}.py::{name}" in tests and case.find("skipped") is None:
            faults = [int(entry.get("value", "1")) for entry in case.iter("property") if entry.get("name") == "faults"]
            tried += sum(faults) or 1
            survived += (sum(faults) or 1) * (case.find("failure") is None and case.find("error") is None)
    return tried, survived


def table(counts: dict[str, tuple[int, int]]) -> str:
    lines = [f"| {name} | {tried:,} | {survived:,} |" for name, (tried, survived) in counts.items()]
    return "\n".join(["| faults | tried | survived |", "|---|---:|---:|", *lines])


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    written = re.sub(r"(<!-- faults -->\n).*(<!-- end -->)", rf"\1\n{table(counted())}\n\n\2", page, flags=re.DOTALL)
    PAGE.write_text(written, encoding="utf-8")
