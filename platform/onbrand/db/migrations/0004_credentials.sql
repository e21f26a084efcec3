-- depends: 0003_identity
-- API keys of a brand, invitations, and the end of both when a membership ends. The claims of a credential name its
-- row; the row says whether the credential is valid and what it may do.
set role onbrand_owner;

create table app.api_keys (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  prefix text not null generated always as ('ob_' || left(id::text, 8)) stored,
  hash text not null check (hash ~ '^[0-9a-f]{64}$'),
  scopes text[] not null check (cardinality(scopes) between 1 and 5 and array_position(scopes, null) is null
    and scopes <@ array['read', 'upload', 'train', 'generate', 'manage']),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz check (expires_at > created_at),
  last_used_at timestamptz,
  revoked_at timestamptz,
  primary key (brand_id, id)
);
create index api_keys_by_time on app.api_keys (brand_id, created_at, id);
-- For find_key, which does not know the brand yet; see brand_users_by_user.
create index api_keys_by_id on app.api_keys (uuid_send(id));
alter index app.api_keys_by_id alter column 1 set statistics 0;
create index api_keys_by_user on app.api_keys (brand_id, user_id) where revoked_at is null;

create table app.invitations (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  email text not null check (email = lower(email) and char_length(email) between 3 and 254),
  role text not null check (role in ('member', 'admin')),
  hash text not null check (hash ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null check (expires_at > created_at and expires_at <= created_at + interval '31 days'),
  accepted_at timestamptz,
  accepted_by uuid,
  revoked_at timestamptz,
  declined boolean not null default false,
  primary key (brand_id, id),
  check (num_nulls(accepted_at, accepted_by) in (0, 2)),
  check (accepted_at is null or revoked_at is null),
  check (not declined or revoked_at is not null)
);
create index invitations_by_time on app.invitations (brand_id, created_at, id);
-- For find_invitation and my_invitations, over all brands; see brand_users_by_user.
create index invitations_by_id on app.invitations (uuid_send(id));
alter index app.invitations_by_id alter column 1 set statistics 0;
create index invitations_open_by_email on app.invitations (reverse(email), created_at, id)
  where accepted_at is null and revoked_at is null;
alter index app.invitations_open_by_email alter column 1 set statistics 0;

reset role;

grant select, update (last_used_at, revoked_at) on app.api_keys to onbrand_definer;
grant select, update (accepted_at, accepted_by, revoked_at) on app.invitations to onbrand_definer;

set role onbrand_definer;

-- The key with this id and hash, if it is valid and its creator is still a member. The call sets last_used_at, at most
-- once a minute.
create function private.find_key(id uuid, hash text) returns table (brand_id text, user_id uuid, scopes text[])
language sql volatile security definer set search_path = '' as $$
  update app.api_keys k set last_used_at = statement_timestamp()
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp())
    and (k.last_used_at is null or k.last_used_at < statement_timestamp() - interval '1 minute');
  select k.brand_id, k.user_id, k.scopes from app.api_keys k
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp())
    and exists (select 1 from app.brand_users bu where bu.brand_id = k.brand_id and bu.user_id = k.user_id)
$$;

-- Open invitations to the caller's verified address, newest first: at most max_rows, after a position in the list.
create function private.my_invitations(at timestamptz, after uuid, max_rows integer)
returns table (id uuid, brand_id text, role text, created_at timestamptz, expires_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare address text := private.my_verified_email();
begin
  if address is null or not private.is_unrestricted() or not private.is_credential_valid() then return; end if;
  return query select i.id, i.brand_id, i.role, i.created_at, i.expires_at from app.invitations i
    where reverse(i.email) = reverse(address) and i.accepted_at is null and i.revoked_at is null
      and i.expires_at > statement_timestamp()
      and (my_invitations.at is null or (i.created_at, i.id) < (my_invitations.at, my_invitations.after))
    order by i.created_at desc, i.id desc limit least(max_rows, 101);
end $$;

-- The invitation that the caller may answer. With the secret, the account must have the invited address; without it,
-- the address must be verified. The function that answers checks whether the invitation is open.
create function private.find_invitation(id uuid, hash text) returns table (brand_id text, user_id uuid, role text)
language plpgsql stable security definer set search_path = '' as $$
declare
  address text := case when hash is null then private.my_verified_email() else private.my_email() end;
begin
  if not private.is_unrestricted() or not private.is_credential_valid() then
    raise exception 'no invitation for this credential' using errcode = '42501';
  end if;
  return query select i.brand_id, i.user_id, i.role from app.invitations i
    where uuid_send(i.id) = uuid_send(find_invitation.id) and i.email = address
      and (find_invitation.hash is null or i.hash = find_invitation.hash);
end $$;

-- Become a member by an invitation: once, before it expires, and while its creator is an admin. Returns the brand, or
-- null for every reason of failure. The creator stays an admin until the end of the transaction. Memberships are locked
-- before invitations, in the same order as a removal locks them.
create function private.accept_invitation(id uuid, hash text) returns text
language plpgsql volatile security definer set search_path = '' as $$
declare invited record;
begin
  select * into invited from private.find_invitation(accept_invitation.id, accept_invitation.hash);
  if not found then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', invited.brand_id));
  perform 1 from app.brand_users bu
    where bu.brand_id = invited.brand_id and bu.user_id = invited.user_id and bu.role = 'admin' for share;
  if not found then return null; end if;
  update app.invitations i set accepted_at = clock_timestamp(), accepted_by = private.uid()
    where i.brand_id = invited.brand_id and i.id = accept_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  insert into app.brand_users (brand_id, user_id, role) values (invited.brand_id, private.uid(), invited.role)
    on conflict do nothing;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.accept',
    jsonb_build_object('invitation_id', accept_invitation.id));
  return invited.brand_id;
end $$;

-- Decline an invitation. Returns the brand, or null for every reason of failure.
create function private.decline_invitation(id uuid, hash text) returns text
language plpgsql volatile security definer set search_path = '' as $$
declare invited record;
begin
  select * into invited from private.find_invitation(decline_invitation.id, decline_invitation.hash);
  if not found then return null; end if;
  update app.invitations i set revoked_at = clock_timestamp(), declined = true
    where i.brand_id = invited.brand_id and i.id = decline_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.decline',
    jsonb_build_object('invitation_id', decline_invitation.id));
  return invited.brand_id;
end $$;

-- When a membership ends, revoke the member's keys, the open invitations that the member made, and those to the
-- member's address. They stay revoked if the member comes back. When an admin is demoted, revoke the open invitations
-- they made.
create function private.tg_end_credentials() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  update app.invitations i set revoked_at = clock_timestamp()
    where i.brand_id = old.brand_id and i.revoked_at is null and i.accepted_at is null
      and (i.user_id = old.user_id or (tg_op = 'DELETE' and i.email = private.email_of(old.user_id)));
  if tg_op = 'DELETE' then
    update app.api_keys k set revoked_at = clock_timestamp()
      where k.brand_id = old.brand_id and k.user_id = old.user_id and k.revoked_at is null;
  end if;
  return null;
end $$;

reset role;

grant execute on function private.find_key(uuid, text) to anon;
grant execute on function private.my_invitations(timestamptz, uuid, integer), private.accept_invitation(uuid, text),
  private.decline_invitation(uuid, text) to authenticated;
grant execute on function private.tg_end_credentials() to onbrand_owner;

set role onbrand_owner;

-- Admins make and revoke keys, but not with a key: a key must not make a key with more scopes.
call app.enable_brand_isolation('app.api_keys');
create policy scope_insert on app.api_keys as restrictive for insert to authenticated
  with check ((select private.ctx('key_id')) is null and (select private.has_scope('manage')));
create policy scope_update on app.api_keys as restrictive for update to authenticated
  using ((select private.ctx('key_id')) is null and (select private.has_scope('manage')))
  with check ((select private.ctx('key_id')) is null and (select private.has_scope('manage')));
create policy reader_select on app.api_keys for select to authenticated using (
  (user_id = (select private.uid()) and ((select private.has_all_scopes()) or (select private.has_scope('manage'))))
  or (select private.is_admin()));
create policy admin_insert on app.api_keys for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.is_admin()));
create policy admin_update on app.api_keys for update to authenticated
  using (revoked_at is null and (select private.is_admin()))
  with check (revoked_at is not null);
grant select (id, brand_id, user_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at)
  on app.api_keys to authenticated;
grant insert (brand_id, user_id, name, hash, scopes, expires_at) on app.api_keys to authenticated;
grant update (revoked_at) on app.api_keys to authenticated;
create trigger creator_is_admin after insert on app.api_keys
  for each row when (current_user = 'authenticated') execute function private.tg_creator_is_admin();

call app.enable_brand_isolation('app.invitations');
call app.require_scope('app.invitations', 'insert', 'manage');
call app.require_scope('app.invitations', 'update', 'manage');
create policy admin_select on app.invitations for select to authenticated
  using ((select private.is_admin()));
create policy admin_insert on app.invitations for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.is_admin()));
create policy admin_update on app.invitations for update to authenticated
  using (revoked_at is null and accepted_at is null and (select private.is_admin()))
  with check (revoked_at is not null);
grant select (id, brand_id, user_id, email, role, created_at, expires_at, accepted_at, accepted_by, revoked_at,
  declined) on app.invitations to authenticated;
grant insert (brand_id, user_id, email, role, hash, expires_at) on app.invitations to authenticated;
grant update (revoked_at) on app.invitations to authenticated;
grant update (declined) on app.invitations to onbrand_definer;
create trigger creator_is_admin after insert on app.invitations
  for each row when (current_user = 'authenticated') execute function private.tg_creator_is_admin();

create trigger end_credentials after delete on app.brand_users
  for each row execute function private.tg_end_credentials();
create trigger end_invitations after update of role on app.brand_users
  for each row when (old.role = 'admin' and new.role <> 'admin') execute function private.tg_end_credentials();

reset role;
