"""bpf/flannel.h in Python, and what an object's ELF and BTF say of it."""
