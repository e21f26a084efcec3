-- depends: 0011_background
-- Announces changes to listening processes, so that they need not poll. Any login may listen: an announcement holds no
-- id, only a seeded digest of one (`private.lock_key`), so it does not show whose job or generation has changed.
set role onbrand_definer;

-- The name under which changes of a job or generation are announced.
create function private.change_name(subject uuid) returns text
language sql stable security definer set search_path = '' as $$
  select private.lock_key('change', subject::text)::text where private.claims() is not null
$$;

create function private.tg_announce_event() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', private.lock_key('change', new.subject_id::text)::text);
  return null;
end $$;

-- The name under which ended memberships and revoked keys of the transaction's brand are announced.
create function private.credentials_name() returns text
language sql stable security definer set search_path = '' as $$
  select private.lock_key('credentials', private.claimed_brand_id())::text where private.claims() is not null
$$;

create function private.tg_announce_credentials() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', private.lock_key('credentials', old.brand_id)::text);
  return null;
end $$;

create function private.tg_announce_queue() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', 'queue');
  return null;
end $$;

reset role;

grant execute on function private.change_name(uuid), private.credentials_name() to authenticated;
grant execute on function private.tg_announce_event(), private.tg_announce_queue(), private.tg_announce_credentials()
  to onbrand_owner;

set role onbrand_owner;

create trigger announce_event after insert on app.job_events
  for each row execute function private.tg_announce_event();
-- The dispatcher submits, cancels and ends jobs; it ends those of removed members.
create trigger announce_queue after insert or delete on app.lora_training_jobs
  for each statement execute function private.tg_announce_queue();
create trigger announce_step after update of status, cancel_requested_at on app.lora_training_jobs for each row
  when (old.status <> new.status or old.cancel_requested_at is distinct from new.cancel_requested_at)
  execute function private.tg_announce_queue();
create trigger announce_queue after delete on app.brand_users
  for each statement execute function private.tg_announce_queue();
create trigger announce_credentials after delete on app.brand_users
  for each row execute function private.tg_announce_credentials();
create trigger announce_credentials after update of revoked_at on app.api_keys
  for each row execute function private.tg_announce_credentials();

reset role;
