import type { CredentialLoader, Credentials } from "../credentials.ts";

/*
 * The credential providers of the official SDK, loaded only when they are needed. Each load asks a provider of its own,
 * because theirs keep what does not expire for good, and a file that was rewritten would count only after a restart.
 */

/** What does not expire is looked at again after so long. */
const keepMs = 60_000;
/** For each question to a metadata service; on a machine without one the answer never comes. */
const metadataTimeoutMs = 1000;

/**
 * The standard chain: environment, shared files (SSO, processes and roles included), web identity, the metadata services of
 * containers and instances. Where all of it has nothing, requests are anonymous.
 */
export function awsChain(): CredentialLoader {
  return {
    keepMs,
    load: async () => {
      const { defaultProvider } = await import("@aws-sdk/credential-provider-node");
      try {
        return converted(await defaultProvider({ ignoreCache: true, timeout: metadataTimeoutMs, maxRetries: 0 })());
      } catch (error) {
        if (error instanceof Error && error.message === "Could not load credentials from any providers")
          return undefined;
        throw error;
      }
    },
  };
}

/** A profile of the shared files, and nothing else. */
export function awsProfile(profile: string): CredentialLoader {
  return {
    keepMs,
    load: async () => {
      const { fromIni } = await import("@aws-sdk/credential-provider-ini");
      return converted(await fromIni({ profile, ignoreCache: true })());
    },
  };
}

interface AwsIdentity {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string;
  expiration?: Date;
}

function converted({ accessKeyId, secretAccessKey, sessionToken, expiration }: AwsIdentity): Credentials {
  return {
    accessKeyId,
    secretAccessKey,
    ...(sessionToken === undefined ? {} : { sessionToken }),
    ...(expiration === undefined ? {} : { expiresAt: expiration.getTime() }),
  };
}
