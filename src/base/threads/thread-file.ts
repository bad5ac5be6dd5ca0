/** A thread's file beside the one that asks, as it is called in a checkout and in the package. @param from `import.meta.url` */
export function threadFile(name: string, from: string): URL {
  return new URL(`./${name}${from.endsWith(".ts") ? ".ts" : ".js"}`, from);
}
