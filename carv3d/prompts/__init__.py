"""Prompts: files of them, and the words for views."""
