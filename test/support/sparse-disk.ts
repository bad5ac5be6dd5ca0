import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { promisify } from "node:util";
import { pattern } from "../backend/support.ts";

/* A disk of a few places with data and many zeros, and what clients are told of it. */

const execute = promisify(execFile);
export const MiB = 1024 * 1024;
export const grain = 64 * 1024;
export const size = 3 * 1024 * MiB;
/** Offsets and lengths of what is on the disk; between the last two is an L2 table of qcow2 that has nothing. */
export const data: [number, number][] = [
  [0, MiB],
  [40 * MiB + 3 * grain, grain],
  [40 * MiB + 5 * grain, 2 * grain],
  [700 * MiB, 3 * MiB],
  [2900 * MiB + 512, 100_000],
];

export function writeDisk(path: string, runs: readonly [number, number][]): void {
  const file = openSync(path, "w");
  ftruncateSync(file, size);
  for (const [at, length] of runs) writeSync(file, pattern(length, at + 1), 0, length, at);
  closeSync(file);
}

export async function run(command: string, ...args: string[]): Promise<string> {
  return (await execute(command, args, { timeout: 120_000, maxBuffer: 64 * MiB })).stdout;
}

/** For each grain of a disk whether it is told to be zeros, as runs of `0` and `1`. */
export async function zerosAsQemuTells(...image: string[]): Promise<string> {
  const runs = JSON.parse(await run("qemu-img", "map", "--output=json", ...image)) as {
    start: number;
    length: number;
    zero: boolean;
  }[];
  return grains(runs.map(({ start, length, zero }) => ({ offset: start, length, zero })));
}

export async function zerosAsNbdinfoTells(uri: string): Promise<string> {
  const runs = JSON.parse(await run("nbdinfo", "--json", "--map", uri)) as {
    offset: number;
    length: number;
    type: number;
  }[];
  for (const { type } of runs) assert.ok(type === 0 || type === 3, `type ${type}`);
  return grains(runs.map(({ offset, length, type }) => ({ offset, length, zero: type === 3 })));
}

/**
 * It is told so in the end: a question that is not answered within a second is answered as data, and on a machine that is
 * busy with other things that may be any of them. @param expected as `grains` has it
 */
export async function demandTold(uri: string, expected: string | RegExp): Promise<void> {
  const isExpected = (told: string): boolean => (expected instanceof RegExp ? expected.test(told) : told === expected);
  let told = await zerosAsNbdinfoTells(uri);
  for (let tries = 1; !isExpected(told) && tries < 50; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    told = await zerosAsNbdinfoTells(uri);
  }
  assert.ok(isExpected(told), `told is ${told} instead of ${String(expected)}`);
}

/** A grain is zeros if all of it is. @returns as `0 x 16, 1 x 49136` */
export function grains(runs: { offset: number; length: number; zero: boolean }[]): string {
  const bits = Buffer.alloc(size / grain, "1");
  for (const { offset, length, zero } of runs) {
    if (!zero) bits.fill("0", Math.floor(offset / grain), Math.ceil((offset + length) / grain));
  }
  const alike = bits.toString().match(/0+|1+/g) ?? [];
  return alike.map((same) => `${same[0]} x ${same.length}`).join(", ");
}

/** As they are when each block of the image is there or not as a whole. */
export function zerosInBlocks(runs: readonly [number, number][], block: number): string {
  const first = (at: number): number => Math.floor(at / block) * block;
  const found = runs.map(([at, length]) => ({ offset: first(at), length: at + length - first(at), zero: false }));
  return grains(found.map((each) => ({ ...each, length: Math.ceil(each.length / block) * block })));
}

/** How much of a disk is told to be zeros, 0 to 1. @param told as `grains` has it */
export function zeroShare(told: string): number {
  const runs = told.split(", ").map((alike) => alike.split(" x "));
  return runs.reduce((sum, [kind, count]) => sum + (kind === "1" ? Number(count) : 0), 0) / (size / grain);
}
