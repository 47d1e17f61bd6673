"""The machine under all methods: what every way to inherit weights shares."""
