"""What users of this field report of other suites and tools, and the tests that hold it here: an index, kept true."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# what is reported elsewhere -> the test functions of that kind, each with several members
REPORTS = {
    "images of 16 bits come out white": [
        "test_images_of_16_bits_are_scaled_and_not_cut",
        "test_values_without_a_known_white_are_refused_by_name",
        "test_values_that_pillow_takes_for_others_are_refused_by_name",
    ],
    "a missing value becomes a value": [
        "test_a_bias_that_is_missing_is_unknown_however_it_is_written",
        "test_what_only_looks_missing_is_a_value",
        "test_a_label_that_is_missing_is_refused",
        "test_folders_of_what_is_missing",
    ],
    "my validation folder was ignored": [
        "test_the_usual_names_of_splits_are_read",
        "test_folders_that_look_like_splits_and_are_not_read_are_refused",
    ],
    "a blank made a class more": ["test_blanks_around_names_do_not_count", "test_names_that_are_nearly_one_are_told"],
    "half of my files were not read": [
        "test_images_of_every_kind_are_found_and_the_rest_is_told",
        "test_what_is_left_out_and_converted_is_told_before_anything_trains",
    ],
    "a class without training images": ["test_a_class_that_training_lacks_is_refused"],
    "transparent images show what is hidden": [
        "test_transparent_images_are_put_on_white",
        "test_a_colour_that_means_transparent_is_white",
    ],
    "the notebook's backend ended the run": [
        "test_a_figure_needs_nothing_of_the_environment",
        "test_a_figure_follows_no_settings_and_leaves_none",
    ],
    "a damaged photograph, and no file name": [
        "test_exif_that_cannot_be_read_is_ignored",
        "test_whatever_a_decoder_raises_names_the_file",
        "test_a_damaged_file_is_read_or_named",
    ],
    "results of two machines cannot be put together": [
        "test_records_of_two_machines_that_overlap_count_once",
        "test_unequal_records_of_a_cell_are_refused_in_one_message_with_both_paths",
    ],
    "the console cannot encode a character": [
        "test_a_terminal_shows_it_as_it_is_or_by_its_codes",
        "test_old_ways_to_wrap_a_stream_do_not_fail",
    ],
    "a label was taken for markup": [
        "test_markdown_shows_it_as_it_is",
        "test_latex_has_balanced_groups_one_line_a_row_and_no_command_of_theirs",
        "test_a_csv_has_one_line_a_row_and_nothing_that_a_spreadsheet_computes",
        "test_signs_of_full_width_begin_no_formula_either",
        "test_labels_are_shown_as_they_are_in_every_figure",
        "test_labels_of_others_go_through_a_whole_report",
    ],
    "names in Chinese": [
        "test_a_latex_file_says_which_engine_its_characters_need",
        "test_another_installed_font_has_what_the_usual_one_lacks",
    ],
    "the home's ~ made a folder": [
        "test_every_path_of_the_command_line_may_begin_with_a_tilde",
        "test_what_is_wrong_with_a_path_is_said_in_our_words",
        "test_environment_variables_may_begin_with_a_tilde",
        "test_the_root_of_every_dataset_may_begin_with_a_tilde",
    ],
    "CelebA as it comes from Kaggle": [
        "test_celeba_is_read_as_people_have_it",
        "test_celeba_takes_the_file_that_the_list_names",
    ],
    "an encoder only to count rows": ["test_inspect_counts_without_an_encoder"],
    "an encoder without a padding token": [
        "test_encoders_without_tokens_for_padding_or_masks_are_used",
        "test_an_encoder_without_any_token_for_padding_is_told_before_texts_are_tokenised",
        "test_relative_positions_have_no_end",
    ],
    "weights below state_dict or module": [
        "test_weights_are_found_however_they_were_saved",
        "test_what_is_wrong_with_weights_is_named",
        "test_weights_that_are_not_finite_are_refused",
    ],
    "what an archive's or a disk's system left": ["test_folders_of_the_system_are_left_alone"],
    "a link that leads nowhere": [
        "test_a_link_that_leads_nowhere_names_itself",
        "test_a_link_in_a_table_that_leads_nowhere_names_itself",
        "test_a_path_through_a_link_that_leads_nowhere_names_the_link",
        "test_data_behind_a_link_that_leads_nowhere_are_missing_and_it_is_named",
        "test_a_file_that_is_a_link_that_leads_nowhere_names_itself",
    ],
    "a number with digits too many": [
        "test_numbers_out_of_proportion_are_refused",
        "test_draws_and_seeds_together_have_a_limit",
        "test_a_large_grid_resolves_its_settings_once",
    ],
    "an empty variable in a script": [
        "test_an_empty_value_is_refused",
        "test_so_it_is_in_every_command",
        "test_an_empty_quoted_value_is_refused",
    ],
    "an option given twice": ["test_an_option_given_twice_is_refused"],
    "a device that torch knows and we do not": ["test_a_device_that_is_not_supported_is_refused"],
    "a settings file of wrong types": ["test_an_experiment_file_that_is_wrong_is_refused"],
    "an unwritable folder, found after hours": [
        "test_a_results_folder_that_cannot_be_written_is_told_before_data_are_built",
        "test_a_report_that_cannot_be_written_is_told_before_records_are_read",
        "test_an_export_into_a_folder_that_cannot_be_written_is_refused_before_anything_is_read",
    ],
    "data are missing, and nothing says how to go on": [
        "test_a_run_that_lacks_data_says_which_options_help",
        "test_download_fetches_and_goes_on",
        "test_skip_missing_runs_the_rest_and_says_what_was_left_out",
    ],
    "the one download address is gone": [
        "test_the_hub_is_one_of_several_mirrors_in_any_place",
        "test_files_of_the_hub_are_fetched_and_verified",
    ],
    "it needs Unix to be imported": [
        "test_every_module_can_be_imported",
        "test_nothing_of_unix_is_imported_at_the_top",
    ],
    "a foreign log removed a folder": [
        "test_a_log_stays_in_its_folder_whatever_the_titles_of_a_record",
        "test_a_log_follows_no_link_out_of_its_folder",
    ],
    "a killed run starts from zero": [
        "test_a_run_that_is_ended_goes_on_whatever_ends_it",
        "test_what_is_damaged_is_not_gone_on_from",
    ],
    "one process hangs the grid": [
        "test_what_a_cell_does_to_its_process_is_recorded_and_hangs_nothing",
        "test_a_cell_that_takes_too_long_is_ended",
    ],
    "two runs on one folder train everything twice": ["test_two_runs_on_one_folder_train_each_cell_once"],
}


@pytest.fixture(scope="module")
def functions():
    """Names of all test functions."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_has_its_tests(report, functions):
    assert set(REPORTS[report]) <= functions
