"""Causal abstraction: does the model compute the variables of a program that we can read?"""
