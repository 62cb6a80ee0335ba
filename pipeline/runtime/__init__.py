"""The reference runner: runs a bundle on texts and questions, without any code that trains or exports."""
