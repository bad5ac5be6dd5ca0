import { IoError } from "../../src/base/errors.ts";
import type { Random } from "./random.ts";
import type { SimInode, Survival } from "./sim-inode.ts";

/** A directory: the entries that processes see. */
export class SimDirectory {
  readonly entries = new Map<string, SimNode>();
}

export type SimNode = SimInode | SimDirectory;

interface Change {
  directory: SimDirectory;
  name: string;
  node: SimNode | undefined;
}

/** One create, mkdir, rename, unlink or rmdir: all its changes or none. */
interface Operation {
  seq: number;
  changes: Change[];
}

/**
 * The directory tree, as processes see it and as a power cut may leave it. Operations that no directory sync has covered
 * survive or not each on its own, in any combination that keeps operations on the same name in order: the journal of a
 * real file system is stricter, POSIX is not.
 */
export class SimNamespace {
  readonly root = new SimDirectory();
  readonly #durable = new Map<SimDirectory, Map<string, SimNode>>();
  #pending: Operation[] = [];
  readonly #onDetach: (inode: SimInode) => void;

  constructor(onDetach: (inode: SimInode) => void) {
    this.#onDetach = onDetach;
  }

  /** @throws IoError ENOENT, ENOTDIR */
  directory(path: string): SimDirectory {
    const node = this.lookup(path);
    if (!node) throw new IoError("ENOENT", `${path}: no such directory`);
    if (!(node instanceof SimDirectory)) throw new IoError("ENOTDIR", `${path}: not a directory`);
    return node;
  }

  lookup(path: string): SimNode | undefined {
    let node: SimNode | undefined = this.root;
    for (const part of parts(path)) {
      if (!(node instanceof SimDirectory)) return undefined;
      node = node.entries.get(part);
    }
    return node;
  }

  link(seq: number, path: string, node: SimNode): void {
    this.#apply({ seq, changes: [{ ...this.#place(path), node }] });
  }

  unlink(seq: number, path: string): void {
    this.#apply({ seq, changes: [{ ...this.#place(path), node: undefined }] });
  }

  rename(seq: number, from: string, to: string): void {
    const source = this.#place(from);
    const node = source.directory.entries.get(source.name);
    if (!node) throw new IoError("ENOENT", `rename ${from}: no such file or directory`);
    const target = this.#place(to);
    const replaced = target.directory.entries.get(target.name);
    if (replaced instanceof SimDirectory && replaced.entries.size > 0) {
      throw new IoError("ENOTEMPTY", `rename ${from} to ${to}: directory not empty`);
    }
    this.#apply({
      seq,
      changes: [
        { ...source, node: undefined },
        { ...target, node },
      ],
    });
  }

  /** Operations in `directory` up to `seq` are durable, with those on the same names that they build on. */
  makeDurable(seq: number, directory: SimDirectory): void {
    const names = new NameSet();
    const kept: Operation[] = [];
    const done: Operation[] = [];
    for (const operation of this.#pending.toReversed()) {
      const wanted =
        operation.seq <= seq && operation.changes.some((change) => change.directory === directory || names.has(change));
      if (wanted) operation.changes.forEach((change) => names.add(change));
      (wanted ? done : kept).unshift(operation);
    }
    for (const operation of done) this.#persist(operation);
    this.#pending = kept;
  }

  /** What is left of the tree after a power cut. */
  cut(random: Random, survival: Survival): void {
    const dropped = new NameSet();
    for (const operation of this.#pending) {
      const survives = survival === "everything" || (survival === "mixed" && random.chance(0.6));
      if (survives && !operation.changes.some((change) => dropped.has(change))) this.#persist(operation);
      else operation.changes.forEach((change) => dropped.add(change));
    }
    this.#pending = [];
    this.#restore(this.root);
  }

  /** Every file that has a name. */
  inodes(directory: SimDirectory = this.root): SimInode[] {
    return [...directory.entries.values()].flatMap((node) =>
      node instanceof SimDirectory ? this.inodes(node) : [node],
    );
  }

  #place(path: string): { directory: SimDirectory; name: string } {
    const all = parts(path);
    const name = all.pop()!;
    return { directory: this.directory(`/${all.join("/")}`), name };
  }

  #apply(operation: Operation): void {
    this.#pending.push(operation);
    for (const { directory, name, node } of operation.changes) {
      const old = directory.entries.get(name);
      if (node) directory.entries.set(name, node);
      else directory.entries.delete(name);
      if (node && !(node instanceof SimDirectory)) node.links++;
      if (old && !(old instanceof SimDirectory) && --old.links === 0) this.#onDetach(old);
    }
  }

  #persist(operation: Operation): void {
    for (const { directory, name, node } of operation.changes) {
      const entries = this.#durable.get(directory) ?? new Map<string, SimNode>();
      this.#durable.set(directory, entries);
      if (node) entries.set(name, node);
      else entries.delete(name);
    }
  }

  #restore(directory: SimDirectory): void {
    directory.entries.clear();
    for (const [name, node] of this.#durable.get(directory) ?? []) {
      directory.entries.set(name, node);
      if (node instanceof SimDirectory) this.#restore(node);
    }
  }
}

/** Names, each in its directory. */
class NameSet {
  readonly #names = new Map<SimDirectory, Set<string>>();

  add({ directory, name }: Change): void {
    const names = this.#names.get(directory) ?? new Set();
    this.#names.set(directory, names.add(name));
  }

  has({ directory, name }: Change): boolean {
    return this.#names.get(directory)?.has(name) ?? false;
  }
}

function parts(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
}
