"""Generated protocol stubs and the pipeline specification."""
