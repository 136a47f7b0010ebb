// The name of a LoRA file as people say it.

const ENDING = /\.(safetensors|pt|bin|ckpt|pth)$/;

// Without folders, whichever system wrote them, and without the ending of a LoRA file.
export function baseName(name) {
  return name.split(/[\\/]/).at(-1).replace(ENDING, "");
}
