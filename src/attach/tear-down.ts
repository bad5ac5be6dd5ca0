import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { describeError, UllageError } from "../base/errors.ts";
import { inspect, type Inspection, isReadOnly, stateOf } from "./inspection.ts";
import { type AttachedDevice, kernelUsersOf } from "./block-devices.ts";
import { disconnectKernel } from "./kernel-nbd.ts";
import { mountsIn } from "../base/mounts.ts";
import { unmountFuse } from "./nbdfuse.ts";
import type { Place } from "./place.ts";
import { isAlive, usersOf } from "./processes.ts";
import { runCommand, tryCommand } from "./run-command.ts";

/** The helper's last flush may take 30 s (NbdClient.close). */
const HELPER_END_MS = 45_000;
const POLL_MS = 20;
/** Whoever looks at every new or changed disk, as udev does, is done within that. */
const GLANCE_MS = 3_000;

/**
 * Takes an attachment apart, from the top down, whatever state it is in:
 *
 *     file system unmounted (and so written) -> device flushed -> kernel: device disconnected
 *                                                                nbdfuse: loop device gone -> file unmounted, nbdfuse ends
 *     -> helper flushes, says goodbye, ends -> its directory removed
 *
 * Who uses it is asked before anything is done, and each step only follows when the one before has succeeded: what is
 * busy stays as it was. Done again after a failure it goes on where it was.
 * @returns what was lost on the way; empty: nothing
 * @throws UllageError `attach-in-use` with who uses it
 */
export async function tearDown(place: Place): Promise<string[]> {
  const found = inspect(place);
  const losses: string[] = [];
  const { state, reason } = stateOf(found);
  if (state === "broken" && found.via === "kernel") {
    // What waits for an answer that can't come any more, an unmounting for instance, would wait for ever.
    for (const { name } of found.devices) await disconnectKernel(name);
  }
  await unless(() => usedBy(place, found));
  const present = found.fuseMounted || found.devices.length > 0;
  if (state === "broken" && present && !isReadOnly(found)) losses.push(`${reason}: writes may have failed`);
  for (const { path } of found.mounts) await unmount(path);
  for (const device of inspect(place).devices) await remove(device, place, found, losses);
  // The kernel keeps a device that somebody has opened meanwhile until it is closed.
  await unless(() => {
    const [left] = inspect(place).devices;
    return left === undefined ? undefined : inUse(place.name, left.path, usersOf([left.path]));
  });
  if (found.devices.length === 0 && found.fuseMounted) await flush(place.file, found, losses);
  const refused = await unmountFuse(place);
  if (refused !== undefined) throw inUse(place.name, place.file, usersOf([place.fuse]), refused);
  await helperEnds(place, losses);
  place.remove();
  return losses;
}

/** Throws what `refusal` still returns after a while: what only looks is waited for. */
async function unless(refusal: () => UllageError | undefined): Promise<void> {
  for (const deadline = performance.now() + GLANCE_MS; ; await sleep(POLL_MS)) {
    const error = refusal();
    if (error === undefined) return;
    if (performance.now() > deadline) throw error;
  }
}

function usedBy(place: Place, { devices, mounts, fuseMounted }: Inspection): UllageError | undefined {
  for (const mount of mounts) {
    const inside = mountsIn([mount]).filter(({ id }) => !mounts.some((ours) => ours.id === id));
    const users = [...usersOf([mount.path]), ...inside.map(({ path }) => `the mount at ${path}`)];
    if (users.length > 0) return inUse(place.name, mount.path, users);
  }
  for (const device of devices) {
    const names = [...device.numbers.keys()];
    const users = [...usersOf(names), ...kernelUsersOf(device)];
    if (users.length > 0) return inUse(place.name, names.join(", "), users);
  }
  if (devices.length > 0 || !fuseMounted) return undefined;
  const users = usersOf([place.fuse]);
  return users.length > 0 ? inUse(place.name, place.file, users) : undefined;
}

async function unmount(path: string): Promise<void> {
  const { code, stderr } = await tryCommand("umount", path);
  if (code === 0) return;
  throw new UllageError("attach-in-use", `${path} can't be unmounted: ${stderr}`, {
    hint: "nothing was detached; what was unmounted stays so. End what uses it and try again",
  });
}

async function remove(device: AttachedDevice, place: Place, found: Inspection, losses: string[]): Promise<void> {
  if (found.via === "fuse") {
    await flush(device.path, found, losses);
    await runCommand("losetup", "--detach", device.path);
    return;
  }
  // Unlike a loop device it can be taken away from under a file system. As long as it is ours alone nothing mounts it.
  const handle = await open(device.path, constants.O_RDONLY | constants.O_EXCL).catch((error: unknown) => {
    throw inUse(place.name, device.path, usersOf([device.path]), describeError(error));
  });
  try {
    await flush(device.path, found, losses);
    await disconnectKernel(device.name);
  } finally {
    await handle.close();
  }
}

/** A file system has been written by its unmounting; whoever wrote to the device itself may not have flushed. */
async function flush(path: string, found: Inspection, losses: string[]): Promise<void> {
  if (isReadOnly(found)) return;
  try {
    const handle = await open(path, "r+");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    losses.push(`what was written to ${path} last could not be flushed: ${describeError(error)}`);
  }
}

async function helperEnds(place: Place, losses: string[]): Promise<void> {
  const helper = place.readStatus()?.helper;
  if (helper !== undefined && isAlive(helper)) {
    const deadline = performance.now() + HELPER_END_MS;
    while (isAlive(helper) && performance.now() < deadline) await sleep(POLL_MS);
    if (isAlive(helper)) process.kill(helper.pid, "SIGKILL");
  }
  const status = place.readStatus();
  if (status?.served !== true) return;
  if (status.failures > 0) losses.push(`${status.failures} requests failed because the daemon was away`);
  if (status.lastFlush !== null) losses.push(`the last flush failed: ${status.lastFlush}`);
}

function inUse(name: string, what: string, users: readonly string[], why?: string): UllageError {
  const who = users.length > 0 ? users.join(", ") : (why ?? "the kernel");
  return new UllageError("attach-in-use", `'${name}' can't be detached: ${what} is in use by ${who}`, {
    hint: "end what uses it and try again; nothing was changed",
  });
}
